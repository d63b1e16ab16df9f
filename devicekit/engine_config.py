"""The former place of `devicekit.engine.config`, for one release."""

from devicekit.renamed import renamed

__getattr__ = renamed(
    __name__,
    {
        "EngineConfig": "devicekit.engine:EngineConfig",
        "plan_pool": "devicekit.engine:plan_pool",
    },
)
