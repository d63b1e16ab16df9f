"""The former place of `devicekit.device.generic`, for one release."""

from devicekit.renamed import renamed

__getattr__ = renamed(
    __name__,
    {
        "register": "devicekit.device.generic:register",
    },
)
