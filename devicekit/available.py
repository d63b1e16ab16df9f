"""The former place of `devicekit.device.available`, for one release."""

from devicekit.renamed import renamed

__getattr__ = renamed(
    __name__,
    {
        "AvailableMemory": "devicekit.device:AvailableMemory",
        "available_memory": "devicekit.device:available_memory",
        "empty_device_cache": "devicekit.device:empty_device_cache",
    },
)
