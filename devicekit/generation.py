"""The former place of `devicekit.engine.generation`, for one release."""

from devicekit.renamed import renamed

__getattr__ = renamed(
    __name__,
    {
        "Generation": "devicekit.engine:Generation",
        "IncrementalText": "devicekit.engine:IncrementalText",
    },
)
