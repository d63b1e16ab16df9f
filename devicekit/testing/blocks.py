"""Segments taken from the driver, and the blocks they are cut into."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Block", "Fence", "FreeList", "PoolKey", "Segment"]


class Fence(Protocol):
    """A point in a stream's work: done when all of it has retired."""

    def done(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class PoolKey:
    """Which free list a block belongs to. Blocks are never reused across size class, stream or private pool."""

    size_class: str  # "small_pool" or "large_pool", as the statistics call them
    stream: int
    private: int | None


class Block:
    """A run of bytes within a segment: allocated, awaiting a fence, or free."""

    __slots__ = ("allocated", "fences", "frames", "next", "offset", "prev", "requested", "segment", "size")

    def __init__(self, segment: Segment, offset: int, size: int) -> None:
        self.segment = segment
        self.offset = offset
        self.size = size
        self.requested = 0
        self.allocated = False
        self.fences: tuple[Fence, ...] = ()
        self.frames: tuple[str, ...] = ()
        self.prev: Block | None = None
        self.next: Block | None = None

    @property
    def address(self) -> int:
        return self.segment.address + self.offset

    @property
    def active(self) -> bool:
        """Allocated, or freed while a stream may still use it."""
        return self.allocated or bool(self.fences)

    @property
    def split(self) -> bool:
        """True when the segment holds other blocks beside this one, so that it cannot go back to the driver."""
        return self.prev is not None or self.next is not None

    @property
    def state(self) -> str:
        if self.allocated:
            return "active_allocated"
        return "active_awaiting_free" if self.fences else "inactive"

    def cut(self, size: int) -> Block:
        """Keep the first `size` bytes and return the rest as a free block of its own."""
        rest = Block(self.segment, self.offset + size, self.size - size)
        rest.prev, rest.next = self, self.next
        if self.next is not None:
            self.next.prev = rest
        self.next = rest
        self.size = size
        return rest

    def absorb_next(self) -> None:
        """Join the block behind this one into it."""
        gone = self.next
        if gone is None:
            raise ValueError("the last block of a segment has nothing to absorb")
        self.size += gone.size
        self.next = gone.next
        if gone.next is not None:
            gone.next.prev = self


class Segment:
    """One allocation of the driver's."""

    __slots__ = ("address", "first", "key", "size")

    def __init__(self, address: int, size: int, key: PoolKey) -> None:
        self.address = address
        self.size = size
        self.key = key
        self.first = Block(self, 0, size)

    def blocks(self) -> Iterator[Block]:
        block: Block | None = self.first
        while block is not None:
            yield block
            block = block.next


class FreeList:
    """Free blocks of one pool by size, then address, so that the first that is large enough is the best fit."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, Block]] = []

    def add(self, block: Block) -> None:
        bisect.insort(self._entries, (block.size, block.address, block))

    def remove(self, block: Block) -> None:
        del self._entries[bisect.bisect_left(self._entries, (block.size, block.address))]

    def best_fit(self, size: int) -> Block | None:
        """Take out the smallest block of at least `size` bytes."""
        at = bisect.bisect_left(self._entries, (size, 0))
        return self._entries.pop(at)[2] if at < len(self._entries) else None

    def __iter__(self) -> Iterator[Block]:
        return (block for _, _, block in self._entries)
