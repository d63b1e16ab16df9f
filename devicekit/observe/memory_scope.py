"""How much a device's allocator took and gave back during a ``with`` block, as exactly as the backend can know."""

from __future__ import annotations

from types import TracebackType

from devicekit.contract.records import AllocatorState, MemoryStats
from devicekit.device import Device

_TOTAL = "allocated_bytes.all.allocated"  # every vendor that follows torch's allocator counts under this key
_NOTHING = MemoryStats(
    AllocatorState.OK,
    allocated=0,
    requested=0,
    active=0,
    reserved=0,
    peak_allocated=0,
    peak_active=0,
    peak_reserved=0,
    raw={_TOTAL: 0},
)


class MemoryScope:
    """Current, peak and total bytes of the whole process on one device, relative to the start of the block.

    Reads the allocator's statistics twice and changes nothing: it resets no peak, so scopes nest and overlap
    freely, in any number of threads. Every thread's allocations count. ``None``: the backend does not say, or it
    cannot be told without resetting.

    Inside the block the numbers are those of this moment; afterwards, those of its end.
    """

    __slots__ = ("_after", "_before", "device", "name")

    def __init__(self, device: Device, name: str = "") -> None:
        self.device = device
        self.name = name
        self._before: MemoryStats | None = None
        self._after: MemoryStats | None = None

    def __enter__(self) -> MemoryScope:
        self.start(self.device.memory_stats())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(self.device.memory_stats())

    def start(self, stats: MemoryStats) -> None:
        """Begin with statistics that were just read; `stop` ends. For who reads them anyway."""
        self._before, self._after = stats, None

    def stop(self, stats: MemoryStats) -> None:
        """End with statistics that were just read."""
        self._after = stats

    @property
    def before(self) -> MemoryStats:
        """The allocator at the start of the block; zeros if nothing had ever been allocated."""
        if self._before is None:
            raise RuntimeError("This scope has not been entered.")
        return _known(self._before)

    @property
    def after(self) -> MemoryStats:
        """The allocator at the end of the block, or now while the block runs."""
        return _known(self.device.memory_stats() if self._after is None else self._after)

    @property
    def current(self) -> int | None:
        """Bytes allocated more than at the start; negative if fewer."""
        return _difference(self.after.allocated, self.before.allocated)

    @property
    def reserved(self) -> int | None:
        """Bytes held from the driver more than at the start; negative if fewer."""
        return _difference(self.after.reserved, self.before.reserved)

    @property
    def total(self) -> int | None:
        """Bytes allocated altogether, freed ones included."""
        return _difference(self.after.raw.get(_TOTAL), self.before.raw.get(_TOTAL))

    @property
    def peak(self) -> int | None:
        """The most bytes allocated above the start; ``None`` where an older, higher peak hides it.

        The allocator's peak reaches back beyond the block. It is the block's own if it rose during the block, or
        if the block began or ended at it. `peak_bounds` always says what is certain. Resetting peaks inside the
        block makes the answer a lower bound.
        """
        low, high = self.peak_bounds
        return low if low == high else None

    @property
    def peak_bounds(self) -> tuple[int | None, int | None]:
        """The least and the most that `peak` can be."""
        before, after = self.before, self.after
        if before.allocated is None or after.allocated is None:
            return None, None
        seen = max(before.allocated, after.allocated)
        least, most = seen, after.peak_allocated
        if before.peak_allocated is not None and most is not None:
            if most > before.peak_allocated:
                least = most  # it rose inside the block
            elif most < before.peak_allocated:
                least, most = max(seen, most), None  # somebody reset it inside the block
        return least - before.allocated, _difference(most, before.allocated)


def memory_scope(device: Device, name: str = "") -> MemoryScope:
    """``with memory_scope(device) as scope: ...`` and then ``scope.current``, ``scope.peak``, ``scope.total``."""
    return MemoryScope(device, name)


def _known(stats: MemoryStats) -> MemoryStats:
    # Uninitialised is knowledge too: nothing has been allocated yet.
    return _NOTHING if stats.state is AllocatorState.UNINITIALISED else stats


def _difference(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one - other
