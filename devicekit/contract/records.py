"""What hooks return: plain records in bytes and seconds, in which ``None`` means unknown and 0 means zero.

Vendor functions answer 0 both for "nothing is allocated" and for "nobody counted"; a record keeps the two apart.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class AllocatorState(str, enum.Enum):
    """Why allocator numbers are known or unknown."""

    OK = "ok"
    UNINITIALISED = "uninitialised"  # nothing was allocated yet; reading did not change that
    BAD_FORK = "bad_fork"  # a child forked after its parent initialised the device: nothing can be known
    UNSUPPORTED = "unsupported"  # the backend has no allocator statistics


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """One process's allocator on one device, in bytes. ``None``: not tracked, or not knowable in this state.

    ``allocated <= active <= reserved`` and ``requested <= allocated`` hold wherever both sides are known. Peaks
    are since the last reset. The terms are torch's own:
    https://docs.pytorch.org/docs/stable/notes/cuda.html#memory-management
    """

    state: AllocatorState = AllocatorState.UNSUPPORTED
    source: str | None = None  # who counted, for example "torch.accelerator"
    allocated: int | None = None  # live tensors, rounded up by the allocator
    requested: int | None = None  # what callers asked for
    active: int | None = None  # allocated, plus freed blocks still waiting for a stream
    reserved: int | None = None  # held from the driver
    inactive_split: int | None = None  # reserved, unused, and not releasable: parts of blocks in use
    peak_allocated: int | None = None
    peak_active: int | None = None
    peak_reserved: int | None = None
    num_alloc_retries: int | None = None
    num_ooms: int | None = None
    num_device_alloc: int | None = None
    num_device_free: int | None = None
    num_segments: int | None = None
    raw: Mapping[str, int] = field(default_factory=dict, repr=False)  # the vendor's own keys, unnormalised

    @property
    def fragmentation(self) -> int | None:
        """Reserved bytes that no live tensor uses."""
        if self.reserved is None or self.allocated is None:
            return None
        return self.reserved - self.allocated

    @property
    def releasable(self) -> int | None:
        """The most that emptying the cache can hand back to the driver."""
        if self.reserved is None or self.active is None or self.inactive_split is None:
            return None
        return self.reserved - self.active - self.inactive_split


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """The whole device as its driver sees it, every process included, in bytes."""

    free: int | None = None
    total: int | None = None
    source: str | None = None  # "runtime", "management", "os" or "estimate"

    @property
    def free_and_total(self) -> tuple[int | None, int | None]:
        """Both figures, for code that takes them apart."""
        return self.free, self.total


@dataclass(frozen=True, slots=True)
class HostMemoryStats:
    """The backend's cache of pinned host memory, in bytes."""

    allocated: int | None = None  # handed out to callers
    reserved: int | None = None  # held from the operating system


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Device memory of one process, as the vendor's management library reports it."""

    pid: int
    used: int | None = None  # bytes


@dataclass(frozen=True, slots=True)
class DeviceProperties:
    """What a device is. ``None``: the vendor does not say."""

    name: str | None = None
    total_memory: int | None = None  # bytes
    uuid: str | None = None
    architecture: str | None = None  # the vendor's own word, for example "9.0" or "gfx942"
    compute_units: int | None = None
    unified_memory: bool | None = None  # shares its memory with the host
    driver: str | None = None  # the driver's version, in the vendor's own form
    # Since contract 1.1.
    # The vendor's version of the architecture; a higher one can do more.
    capability: tuple[int, int] | None = None
    pci_address: str | None = None  # "0000:3b:00.0": domain, bus, device and function, lower-case hexadecimal
    numa_node: int | None = None  # the host's memory node nearest to the device
    # Among all devices of the machine, as the management library counts them.
    physical_index: int | None = None


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    """What a release did. Truthy if and only if the backend's function was called.

    ``reserved_before`` and ``reserved_after`` are allocator bytes of the device that was asked; the effect of
    emptying reaches every device of the process on every known vendor.
    """

    called: bool
    reason: str | None = None  # why it was not called
    reserved_before: int | None = None
    reserved_after: int | None = None
    seconds: float = 0.0

    def __bool__(self) -> bool:
        return self.called

    @property
    def released(self) -> int | None:
        """Bytes handed back, or ``None`` where the backend does not count."""
        if self.reserved_before is None or self.reserved_after is None:
            return None
        return self.reserved_before - self.reserved_after


@dataclass(frozen=True, slots=True)
class Telemetry:
    """How the device is doing at this moment, as the vendor's management library reports it."""

    temperature: float | None = None  # degrees Celsius
    power: float | None = None  # watts, drawn now
    utilisation: float | None = None  # 0 to 1: the share of the last sample in which a kernel ran
    clock: int | None = None  # hertz, of the compute units; unknown while it stands still
    memory_clock: int | None = None  # hertz; unknown while it stands still


@dataclass(frozen=True, slots=True)
class AllocatorSetting:
    """One setting of the device's allocator, in the vendor's own words."""

    name: str
    value: str
    # Now, in this process; False: fixed since the allocator started; None: not told.
    changeable: bool | None = None


class ErrorKind(enum.Enum):
    """What an exception from a device means for the code that caught it."""

    OUT_OF_MEMORY = "out_of_memory"  # free something and try again
    DEVICE_LOST = "device_lost"  # never retry: the context is gone
    WRONG_DEVICE = "wrong_device"  # a programming error
    NOT_INITIALISED = "not_initialised"  # no driver, or a forked child
