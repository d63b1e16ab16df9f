"""Several regions of memory under one tag: given back and taken again together, or not at all."""

from __future__ import annotations

from collections.abc import Sequence

from devicekit.weights.occupation import Region


class JointRegion:
    """Regions that are of no use without each other, such as keys and values and the states beside them."""

    def __init__(self, parts: Sequence[Region]) -> None:
        self._parts = parts

    def release(self) -> int:
        """Free the memory of every part; returns its bytes."""
        return sum(part.release() or 0 for part in self._parts)

    def resume(self) -> int:
        """Allocate every part again; returns the bytes. If one part does not fit, none is allocated."""
        size = 0
        resumed: list[Region] = []
        try:
            for part in self._parts:
                size += part.resume() or 0
                resumed.append(part)
        except Exception:
            for part in resumed:
                part.release()
            raise
        return size
