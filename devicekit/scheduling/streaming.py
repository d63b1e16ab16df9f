"""Which running requests stream nothing but tokens: what they gained leaves a step as columns."""

from __future__ import annotations

import numpy as np

from devicekit.scheduling.batch import Int32, Int64
from devicekit.scheduling.request import Request
from devicekit.scheduling.running import RunningBatch
from devicekit.scheduling.token_columns import Stream, TokenColumns


class Streams:
    """Requests of the running batch whose new tokens are reported after every pass.

    They are told everything in each step, so that nothing is kept about what was told: ``Request.reported`` is
    good again once a request has left.
    """

    def __init__(self, running: RunningBatch) -> None:
        self._running = running
        self._streams: dict[Request, Stream] = {}
        self._untold = 0  # tokens that each of them was not told of yet: one, amid a pass's results
        self._arranged = -1  # changes of the batch when this was made:
        self._order: tuple[Stream, ...] = ()
        self._columns: Int64 = np.empty(0, np.int64)
        self._prompts: Int32 = np.empty(0, np.int32)
        self._offsets: Int32 = np.empty(0, np.int32)

    @staticmethod
    def takes(request: Request) -> bool:
        """Whether there is nothing to tell of a request but its tokens."""
        return request.stream and request.text is None and request.params.logprobs is None

    def join(self, request: Request) -> None:
        """A request joins the running batch."""
        self._streams[request] = _stream(request)

    def leave(self, request: Request) -> None:
        """A request has left it; how many tokens it has is written back."""
        if self._streams.pop(request, None) is not None:
            request.reported = request.num_output - self._untold

    def changed(self) -> None:
        """What there is to say of requests besides their tokens has changed."""
        for request in self._streams:
            self._streams[request] = _stream(request)
        self._arranged = -1

    def begin(self) -> None:
        """Every running request has a new token, or is about to be given one."""
        self._untold = 1

    def tell(self) -> TokenColumns | None:
        """What they gained; ``None`` if there are none. All that end or join are through."""
        self._untold = 0
        if not self._streams:
            return None
        running = self._running
        if self._arranged != running.changes:
            self._arrange()
        columns = running.columns
        lengths = columns.lengths.take(self._columns)
        return TokenColumns(
            self._order, columns.tokens.take(self._columns), self._offsets, lengths - self._prompts
        )

    def _arrange(self) -> None:
        self._order = tuple(self._streams.values())
        self._columns = np.array([request.column for request in self._streams], np.int64)
        self._prompts = np.array([stream.prompt_tokens for stream in self._order], np.int32)
        self._offsets = np.arange(len(self._order) + 1, dtype=np.int32)
        self._arranged = self._running.changes


def _stream(request: Request) -> Stream:
    return Stream(
        request.id,
        len(request.prompt),
        request.cached_tokens,
        request.retractions,
        request.spans,
        request.invalid_logits,
    )
