"""Whether to empty the cache after a component was released: by measured bytes, a declared hint overriding.

The allocator keeps the blocks of a component that left, and the next stage needs blocks of other sizes: it can run
out of memory beside gigabytes that are free. Emptying each time would cost a synchronisation per stage.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from devicekit.ranges import whole
from devicekit.residency.uses import ComponentUse

GIB = 1 << 30


class ReleaseDecision(str, enum.Enum):
    """Why the cache is to be emptied after a release, or why not."""

    HINTED = "the use is declared memory-intensive"
    MEASURED = "it left much behind in the cache"
    NEXT_NEED = "the next component does not fit beside the cache"
    HINTED_SMALL = "the use is declared not memory-intensive"
    SMALL = "it left little behind in the cache"
    SKIPPED = "the use says not to"
    NEIGHBOUR = "a component that is kept ready is on the device"
    STAYED = "it did not leave the device"

    @property
    def empties(self) -> bool:
        """Whether it says to empty."""
        return self in (self.HINTED, self.MEASURED, self.NEXT_NEED)


@dataclass(frozen=True, slots=True)
class Released:
    """What was measured around one release, in bytes. ``None``: the backend does not say."""

    left: int  # of the component, over all parameters and buffers
    remaining: int  # of the component, on the device still
    layerwise: bool
    cached_before: int | None  # reserved and not allocated, before the component was made ready
    cached_after: int | None  # the same, after its release
    driver_free: int | None  # after its release
    next_need: int  # what the next component brings; 0: none comes

    @property
    def left_behind(self) -> int:
        """Bytes that this use left in the cache, with its activations as far as the allocator counts."""
        if self.cached_before is None or self.cached_after is None:
            return self.left
        return min(max(self.left, self.cached_after - self.cached_before), self.cached_after)


@dataclass(frozen=True, slots=True)
class LargeReleaseRule:
    """Empty after a use that left at least ``large`` bytes behind, or where the next component needs the room."""

    large: int = GIB

    def __post_init__(self) -> None:
        whole("large", self.large)

    def decide(self, use: ComponentUse, released: Released, *, neighbour: bool) -> ReleaseDecision:
        """What to do after one release.

        Args:
            neighbour: whether another component that is kept ready is on the device.
        """
        if use.memory_intensive is False:
            return ReleaseDecision.HINTED_SMALL
        if use.skip_empty_cache_on_release:
            return ReleaseDecision.SKIPPED
        stayed = not released.layerwise and (not released.left or released.remaining)
        if use.memory_intensive and not stayed:  # whoever says so means it, whatever else is on the device
            return ReleaseDecision.HINTED
        if neighbour:
            return ReleaseDecision.NEIGHBOUR
        if stayed:
            return ReleaseDecision.STAYED
        if released.left_behind >= self.large:
            return ReleaseDecision.MEASURED
        free = released.driver_free
        if free is not None and released.cached_after and released.next_need > free:
            return ReleaseDecision.NEXT_NEED
        return ReleaseDecision.SMALL
