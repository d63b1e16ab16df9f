"""What streaming requests gained in a step, as columns: who, which tokens, and how many there are now.

Nothing in here is an object of a request and a step: `Step.outputs` makes such objects, for those who want them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from devicekit.scheduling.batch import Int32
from devicekit.scheduling.request import VersionSpan


class Stream(NamedTuple):
    """What an `Output` of a request says besides its tokens: the same in step after step."""

    id: str
    prompt_tokens: int
    cached_tokens: int
    retractions: int
    spans: tuple[VersionSpan, ...]
    invalid_logits: int


@dataclass(frozen=True, slots=True)
class TokenColumns:
    """Tokens of requests that go on, one column a request.

    Stream ``i`` gained ``tokens[offsets[i]:offsets[i + 1]]``. Only streams of which there is nothing to say but
    their tokens are here; others are told one by one.
    """

    streams: Sequence[Stream]  # n of them; the same object while nobody joins or leaves
    tokens: Int32  # [offsets[n]]
    offsets: Int32  # [n + 1]
    output_tokens: Int32  # [n] of each request so far, these included

    def __len__(self) -> int:
        return len(self.streams)
