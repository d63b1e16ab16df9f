"""What an engine is built from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of the model and of its pool. Lengths are in tokens."""

    vocabulary: int = 256
    hidden: int = 32
    heads: int = 4
    layers: int = 2
    block_size: int = 8
    max_running: int = 4  # sequences
    max_length: int = 64  # prompt and output of one sequence
    memory_share: float = 0.9  # of the device's total
    max_blocks: int | None = None  # default: as many as fit
    activation_bytes: int = 64 * 2**20  # of the largest pass, where nobody counts
    graphs: bool = True
    seed: int = 0

    @property
    def head_size(self) -> int:
        """Numbers in one head's key."""
        return self.hidden // self.heads

    @property
    def blocks_per_sequence(self) -> int:
        """Blocks of a sequence of full length."""
        return -(-self.max_length // self.block_size)
