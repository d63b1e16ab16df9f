"""The former place of `devicekit.engine.verbs`, for one release."""

from devicekit.renamed import renamed

__getattr__ = renamed(
    __name__,
    {
        "EngineVerbs": "devicekit.engine:EngineVerbs",
    },
)
