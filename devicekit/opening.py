"""The former place of `devicekit.device.opening`, for one release."""

from devicekit.renamed import renamed

__getattr__ = renamed(
    __name__,
    {
        "device_of": "devicekit.device:device_of",
        "get_device": "devicekit.device:get_device",
        "use": "devicekit.device:use",
    },
)
