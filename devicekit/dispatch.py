"""The former place of `devicekit.device.dispatch`, for one release."""

from devicekit.renamed import renamed

__getattr__ = renamed(
    __name__,
    {
        "classify": "devicekit.device.dispatch:classify",
        "raise_as_hook_error": "devicekit.device.dispatch:raise_as_hook_error",
    },
)
