"""Which running requests a token may end by conditions of their own, found for all of them in one lookup.

A stop string can be complete only when a token comes that has its last byte in it. Where a token's bytes are known
whatever is around it (byte-level tokenizers), requests with stop strings are looked at with such tokens alone, and
the tokens in between are decoded together then. Everything else is looked at with every token: grammars, streams
with stop strings, whose text is wanted at once, and tokenizers of other kinds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from devicekit.scheduling.batch import Int32, Int64
from devicekit.scheduling.request import Request
from devicekit.scheduling.running import RunningBatch
from devicekit.text import Vocabulary

UInt8 = npt.NDArray[np.uint8]
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # may come of any bytes


class StopWatch:
    """The requests of the running batch that have stop conditions of their own.

    Args:
        vocab_size: of the model.
    """

    def __init__(self, running: RunningBatch, vocabulary: Vocabulary | None, vocab_size: int) -> None:
        self._running = running
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._always: dict[Request, None] = {}
        self._watched: dict[Request, None] = {}
        self._undecided: dict[Request, None] = {}  # watched ones in which a match may still grow
        # [vocabulary, 32] bit b % 8 of byte b // 8: whether byte b is in a token.
        self._bytes: UInt8 | None = None
        self._arranged = -1  # changes of the batch when this was made:
        self._token_columns: Int64 = np.empty(0, np.int64)
        self._tokens: Int32 = np.empty(0, np.int32)
        self._byte_columns: Int64 = np.empty(0, np.int64)
        self._places: Int64 = np.empty(0, np.int64)
        self._bits: UInt8 = np.empty(0, np.uint8)

    def __bool__(self) -> bool:
        return bool(self._always or self._watched)

    def join(self, request: Request) -> None:
        """Watch a request that joins the running batch."""
        if self._must_see_all(request):
            self._always[request] = None
            return
        self._watched[request] = None
        self.note(request)

    def leave(self, request: Request) -> None:
        """Watch a request no more."""
        self._always.pop(request, None)
        self._undecided.pop(request, None)
        self._watched.pop(request, None)

    def note(self, request: Request) -> None:
        """Record that a request was looked at and goes on."""
        if request.text is not None and request.text.undecided and request in self._watched:
            self._undecided[request] = None
        elif self._undecided:
            self._undecided.pop(request, None)

    def hits(self, tokens: Int32) -> Iterator[Request]:
        """The requests to look at, of those whose columns these are the new tokens of. Some may come twice."""
        yield from self._always
        yield from tuple(self._undecided)
        if not self._watched:
            return
        if self._arranged != self._running.changes:
            self._arrange()
        requests = self._running.requests
        if len(self._tokens):
            found = (tokens.take(self._token_columns) == self._tokens).nonzero()[0]
            for at in found.tolist():
                yield requests[self._token_columns.item(at)]
        if len(self._bits) and self._bytes is not None:
            seen = self._bytes[tokens.take(self._byte_columns), self._places] & self._bits
            for at in seen.nonzero()[0].tolist():
                yield requests[self._byte_columns.item(at)]

    def _must_see_all(self, request: Request) -> bool:
        if request.matcher is not None:
            return True
        if request.text is None:
            return False
        known = self._vocabulary is not None and self._vocabulary.byte_level
        return request.stream or not known or any(_REPLACEMENT in stop for stop in request.params.stop)

    def _arrange(self) -> None:
        tokens = [
            (request.column, token) for request in self._watched for token in request.params.stop_token_ids
        ]
        ends = [
            (request.column, byte)
            for request in self._watched
            if request.text is not None
            for byte in {stop.encode(errors="replace")[-1] for stop in request.params.stop}
        ]
        self._token_columns = np.array([column for column, _ in tokens], np.int64)
        self._tokens = np.array([token for _, token in tokens], np.int32)
        self._byte_columns = np.array([column for column, _ in ends], np.int64)
        last = np.array([byte for _, byte in ends], np.int64)
        self._places, self._bits = last >> 3, (1 << (last & 7)).astype(np.uint8)
        if ends and self._bytes is None and self._vocabulary is not None:
            self._bytes = _bytes_of(self._vocabulary, self._vocab_size)
        self._arranged = self._running.changes


def _bytes_of(vocabulary: Vocabulary, size: int) -> UInt8:
    """Which bytes are in each token."""
    pieces = [vocabulary.raw_bytes(token) or b"" for token in range(size)]
    found = np.zeros((size, 256), np.bool_)
    owners = np.repeat(np.arange(size), [len(piece) for piece in pieces])
    found[owners, np.frombuffer(b"".join(pieces), np.uint8)] = True
    return np.packbits(found, axis=1, bitorder="little")
