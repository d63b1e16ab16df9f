"""A program as others write it: public names only, strictly typed. `tools.stranger` has it checked."""

from __future__ import annotations

import devicekit
from devicekit import MemoryInfo, MemoryStats, ReleaseResult, hookimpl
from devicekit.contract.errors import UnsupportedHook


class Backend:
    """A backend of three hooks and one more."""

    @hookimpl
    def is_available(self) -> bool:
        return True

    @hookimpl
    def device_count(self) -> int:
        return 1

    @hookimpl
    def synchronize(self, index: int) -> None:
        print(index)

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        return MemoryInfo(free=1, total=index + 2, source="runtime")


def allocated(name: str | None = None) -> int | None:
    device: devicekit.Device = devicekit.get_device(name)
    stats: MemoryStats = device.memory_stats()
    released: ReleaseResult = device.empty_cache()
    if released.released is not None:
        print(released.released + 1)
    free: int | None = device.memory_info().free
    print(free, device.torch_device.type, device.supports("create_stream"))
    try:
        with device.use_stream(device.create_stream()):
            device.synchronize()
    except UnsupportedHook as error:
        print(str(error))
    return stats.allocated


def most_free() -> int | None:
    return devicekit.available_memory(devicekit.get_device()).bytes


if __name__ == "__main__":
    print(allocated("cpu"), most_free())
