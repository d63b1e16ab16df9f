"""What kind of accelerator to simulate: its size, its allocator's habits, its speed."""

from __future__ import annotations

from dataclasses import dataclass

from devicekit.field_types import require_types

__all__ = [
    "GIB",
    "KIB",
    "MIB",
    "SimConfig",
]

KIB = 1 << 10
"""Bytes: 2 to the 10th."""
MIB = 1 << 20
"""Bytes: 2 to the 20th."""
GIB = 1 << 30
"""Bytes: 2 to the 30th."""


@dataclass(frozen=True, slots=True)
class SimConfig:
    """One simulated machine. Sizes are bytes, times are virtual seconds, and every device of it is alike.

    The defaults behave like a discrete card with a caching allocator. Named variants are other honest
    machines: :meth:`rounding_to_2mib`, :meth:`uncached`, :meth:`synchronous`, :meth:`slow_driver`, :meth:`unified`
    and :meth:`lazy`.
    """

    name: str = "Simulated accelerator"
    device_count: int = 2
    capacity: int = 256 * MIB

    # The allocator.
    caching: bool = True
    rounding: int = 512
    small_limit: int = 1 * MIB
    small_segment: int = 2 * MIB
    large_limit: int = 10 * MIB
    large_segment: int = 20 * MIB
    segment_rounding: int = 2 * MIB

    # Time. A kernel costs kernel_seconds on its stream; a copy costs copy_latency + bytes / copy_bandwidth.
    kernel_seconds: float = 10e-6
    copy_latency: float = 10e-6
    copy_bandwidth: float = 10e9
    driver_alloc_seconds: float = 0.0
    driver_free_seconds: float = 0.0
    # So many seconds of the host's own clock pass until the driver's figures show what was taken or given back.
    driver_counts_after: float = 0.0
    # Asking whether work is done takes the host this long, so that a loop that polls comes to an end.
    poll_seconds: float = 1e-6
    # True: the host waits for each operation before it gets the next one, as a debug mode of real drivers does.
    blocking_launches: bool = False

    # True: memory that nothing was written to yet reads as NaN, or -1 in integers, rather than whatever was there.
    fill_uninitialized: bool = True

    # What the device says its driver's version is; None: it does not say.
    driver_version: str | None = None

    # True: host and devices share one physical memory of `capacity` bytes.
    unified_memory: bool = False

    # True: torch's own functions for the current device and for properties initialise, as `torch.cuda`'s do.
    asking_initialises: bool = False

    def __post_init__(self) -> None:
        require_types(self)
        for field in (
            "device_count",
            "capacity",
            "rounding",
            "small_segment",
            "large_segment",
            "segment_rounding",
        ):
            if getattr(self, field) <= 0:
                raise ValueError(f"SimConfig.{field} must be positive, not {getattr(self, field)!r}")
        for field in (
            "small_limit",
            "large_limit",
            "kernel_seconds",
            "copy_latency",
            "driver_alloc_seconds",
            "driver_free_seconds",
            "driver_counts_after",
            "poll_seconds",
        ):
            if not getattr(self, field) >= 0:
                raise ValueError(f"SimConfig.{field} must not be negative, not {getattr(self, field)!r}")
        if not self.copy_bandwidth > 0:
            raise ValueError(f"SimConfig.copy_bandwidth must be positive, not {self.copy_bandwidth!r}")
        if self.caching and not self.small_limit <= self.small_segment:
            raise ValueError("SimConfig.small_limit must fit in small_segment")
        if self.caching and not self.small_limit <= self.large_limit <= self.large_segment:
            raise ValueError("SimConfig needs small_limit <= large_limit <= large_segment")

    def copy_seconds(self, nbytes: int) -> float:
        """How long a copy of `nbytes` keeps its stream busy."""
        return self.copy_latency + nbytes / self.copy_bandwidth

    @classmethod
    def rounding_to_2mib(cls) -> SimConfig:
        """A device whose driver hands out nothing smaller than 2 MiB, and that caches what it got."""
        return cls(rounding=2 * MIB, small_limit=2 * MIB)

    @classmethod
    def uncached(cls) -> SimConfig:
        """No caching allocator: each allocation is the driver's, and goes back to it when it is freed."""
        return cls(caching=False)

    @classmethod
    def synchronous(cls) -> SimConfig:
        """Nothing is ever pending: each operation is over when its call returns."""
        return cls(blocking_launches=True)

    @classmethod
    def slow_driver(cls) -> SimConfig:
        """Taking memory from the driver, and giving it back, costs milliseconds."""
        return cls(driver_alloc_seconds=5e-3, driver_free_seconds=3e-3)

    @classmethod
    def unified(cls) -> SimConfig:
        """One memory for the host and every device, as on a system on a chip."""
        return cls(unified_memory=True)

    @classmethod
    def lazy(cls) -> SimConfig:
        """Whoever asks torch's own functions which device is current, or what it is, initialises it."""
        return cls(asking_initialises=True)
