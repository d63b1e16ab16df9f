"""Which keys the tokens of a decoding batch read, by shapes that do not depend on the batch."""

from __future__ import annotations

import torch

from devicekit.memory.kv import PADDING_SLOT
from devicekit.runners.plan import Segments
from devicekit.runners.reach import Reach

FIELDS = 4
"""What is told of each token: its id, its position, the slot that it writes, and its request's row."""


class NotCapturable(Exception):
    """A model reads its keys in a way that cannot be captured; the message says in which."""


class DecodePlan:
    """As `AttentionPlan`, for one token a request, each with the same number of keys.

    Everything is computed on the device from what its inputs hold then, so the work can be captured and replayed
    with other inputs.
    """

    def __init__(self, inputs: torch.Tensor, pages: torch.Tensor, *, page_size: int, keys: int) -> None:
        """
        Args:
            inputs: int64 [FIELDS, B].
            pages: the request table on the device, int32 [rows, pages_per_row].
            keys: how many keys are read for each token; those behind its position are hidden from it.
        """
        self.tokens, self.positions, self.slots, self._rows = inputs.unbind(0)
        self._pages = pages
        self._page_size = page_size
        self._keys = keys
        self._segments: dict[tuple[int | None, bool], list[Segments]] = {}

    def segments(
        self, window: int | None, *, chunked: bool = False, in_order: bool = False
    ) -> list[Segments]:
        """As `AttentionPlan.segments`. Raises NotCapturable for keys that are to be in order.

        Those are for biases that a model makes for the longest sequence so far. It makes them anew for a longer
        one, and captured work would go on reading the old ones, whose memory is no longer its own.
        """
        if in_order:
            raise NotCapturable(
                "it adds a bias by position to its attention scores, and makes that as it goes"
            )
        if window is not None and window >= self._keys:
            window = None
        sight = (window, chunked)
        if sight not in self._segments:
            self._segments[sight] = [self._build(window, chunked)]
        return self._segments[sight]

    def reaches(self, window: int | None, *, chunked: bool = False, in_order: bool = False) -> list[Reach]:
        """None: no token reads its keys in place."""
        return []

    def _build(self, window: int | None, chunked: bool) -> Segments:
        size, width = self._page_size, self._pages.shape[1]
        positions = self.positions[:, None]
        at = torch.arange(self._keys if window is None else window, device=positions.device)[None]
        if window is not None:
            at = at + (positions // window * window if chunked else (positions - window + 1).clamp(min=0))
        column = (at // size).clamp(max=width - 1)
        page = self._pages.view(-1)[self._rows[:, None] * width + column].long()
        visible = at <= positions
        slots = torch.where(visible, page * size + at % size, PADDING_SLOT)
        tokens = torch.arange(len(self.tokens), device=positions.device)[:, None]
        return Segments(tokens, slots, visible[:, None, None, :])
