"""Which sequence holds which blocks of the cache. Block 0 is padding and belongs to nobody."""

from __future__ import annotations

from collections import deque

from .sequences import Sequence


class BlockManager:
    """Hands out blocks and takes them back."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self._free = deque(range(1, num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def grow(self, sequence: Sequence, length: int) -> bool:
        """Give a sequence blocks for ``length`` tokens. False: there are too few, and nothing changed."""
        missing = -(-length // self.block_size) - len(sequence.blocks)
        if missing > len(self._free):
            return False
        sequence.blocks += [self._free.popleft() for _ in range(missing)]
        return True

    def release(self, sequence: Sequence) -> None:
        """Take everything back; what was computed is lost."""
        self._free.extend(sequence.blocks)
        sequence.blocks.clear()
        sequence.computed = 0

    def slot(self, sequence: Sequence, position: int) -> int:
        """Where the token at a position has its key and value."""
        return sequence.blocks[position // self.block_size] * self.block_size + position % self.block_size
