"""One request, and the blocks that it holds."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Sequence:
    """Tokens of a request; those before ``computed`` are in the cache."""

    prompt: list[int]
    max_new_tokens: int
    output: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    computed: int = 0

    @property
    def tokens(self) -> list[int]:
        """Prompt and output."""
        return self.prompt + self.output

    @property
    def finished(self) -> bool:
        """Whether every token that was asked for is there."""
        return len(self.output) >= self.max_new_tokens
