"""What every token should be, by a model that has no pool, no pages, no cache and no batch.

`ShadowRunner` is a hashing runner that works out beside each forward pass, request by request and from nothing but
their tokens, what must come out of it, and keeps in `wrong` whatever does not fit.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from devicekit.device import Device
from devicekit.scheduling.batch import ForwardBatch, Int32, StepOutput
from devicekit.scheduling.request import Finish, Request, SamplingParams, default_seed
from devicekit.scheduling.state import SchedulerState
from tests.hash_runner import LAYOUT, HashRunner
from tests.soak.wishes import mix, wish

_MASK = (1 << 64) - 1
_PARTS = np.arange(2 * LAYOUT.num_layers, dtype=np.uint64)[:, None]  # a key and a value of each layer


@dataclass(slots=True)
class Book:
    """One request as it was asked for, and all that is known of it."""

    request: Request
    prompt: int  # tokens
    params: SamplingParams
    stream: bool
    deadline: float | None
    sound: bool  # False: it can never run
    tokens: list[int]  # prompt and output
    versions: list[str] = field(default_factory=list)  # of the weights that made each output token
    sums: list[int] = field(default_factory=list)  # over what the pool should hold, up to each position
    last: list[int] = field(default_factory=list)  # the same, of the last layer, if it alone has a window
    retractions: int = 0
    slot: int = 0  # state slot
    folds: list[int] = field(default_factory=list)  # what a recurrent state is after each position
    reported: int = 0  # output tokens that were handed out
    finish: Finish | None = None

    @property
    def output(self) -> list[int]:
        return self.tokens[self.prompt :]

    @property
    def seed(self) -> int:
        seed = self.params.seed
        return default_seed(self.request.id) if seed is None else seed


class ShadowRunner(HashRunner):
    """A hashing runner that is watched. ``state`` must be set before its first step."""

    state: SchedulerState

    def __init__(self, device: Device, *, num_pages: int, page_size: int, **others: object) -> None:
        super().__init__(device, num_pages=num_pages, page_size=page_size, **others)  # type: ignore[arg-type]
        self.books: dict[str, Book] = {}
        self.wrong: list[str] = []
        self.seen: Counter[str] = Counter()
        self._marks: tuple[tuple[int, int], ...] = ()
        self._salt = 0
        self._states: dict[int, int] = {}  # by slot: what a recurrent layer would have there
        self._written: dict[int, int] = {}  # by this pass, if it succeeds
        self.failed = 0  # passes that raised
        self.before: set[str] | None = None  # who held KV when the door was closed, if it was

    def step(self, batch: ForwardBatch) -> StepOutput:
        """The pass itself, with its batch checked before and its tokens after."""
        state = self.state
        self._allowed(state)
        try:
            salt = self.salt()
            wanted = self._foresee(batch, salt)
            result = super().step(batch)
        except Exception:
            self.failed += 1
            raise
        self._states.update(self._written)
        for source, target in [] if batch.kept_states is None else batch.kept_states.tolist():
            self._states[target] = self._states[source]
        got = result.tokens.tolist()
        if [token for _, token in wanted] != got:
            self.wrong.append(f"tokens {got} came out, and {[token for _, token in wanted]} should have")
        for (book, _), token in zip(wanted, got, strict=False):
            if not book.params.max_new_tokens:
                continue  # its prompt was wanted, and no token
            book.tokens.append(token)
            book.versions.append(state.weight_version)
        self.seen["tokens"] += len(got)
        return result

    def salt(self) -> int:
        """As ever; where no weight was written since the last time, without looking at them."""
        if self.device.torch_device.type != "cpu":
            return super().salt()
        marks = tuple((one._version, one.data_ptr()) for one in self.weights.values())
        if marks != self._marks:
            self._marks, self._salt = marks, super().salt()
        return self._salt

    def _allowed(self, state: SchedulerState) -> None:
        if not may_run(state):
            self.wrong.append("a forward pass ran while nothing may run")
        if self.before is not None and state.gate.closed_by:
            fresh = {one.id for one in (*state.running.requests, *state.prefilling)} - self.before
            if fresh:
                self.wrong.append(f"{fresh} started while {state.gate.closed_by} wait for the others to end")

    def _foresee(self, batch: ForwardBatch, salt: int) -> list[tuple[Book, int]]:
        """Whose next token is wanted, in order, and what it should be."""
        state, size = self.state, batch.page_size
        rows = {one.row: one for one in (*state.running.requests, *state.prefilling)}
        starts, tokens, positions = (
            batch.query_start_loc.tolist(),
            batch.input_ids.tolist(),
            batch.positions.tolist(),
        )
        pages = (batch.slot_mapping // size).tolist()
        cells, last_cells = self._cells(batch.input_ids, batch.positions, salt)
        owners: list[Book] = []
        ends: list[int] = []
        for at, row in enumerate(batch.req_pool_indices.tolist()):
            request = rows[row]
            book = self.books[request.id]
            begin, end = starts[at], starts[at + 1]
            first = positions[begin]
            self._go_on(book, request, first, size, salt)
            last = first + end - begin
            if tokens[begin:end] != book.tokens[first:last] or positions[end - 1] != last - 1:
                self.wrong.append(f"{request.id} ran on other tokens than its own at {first}")
            if int(batch.seq_lens[at]) != last:
                self.wrong.append(f"{request.id} is told of {batch.seq_lens[at]} keys and has {last}")
            if first // size < request.cached_pages or not all(pages[begin:end]):
                self.wrong.append(f"{request.id} writes to a page that is not its own at {first}")
            _extend(book.sums, cells[begin:end])
            if last_cells:
                _extend(book.last, last_cells[begin:end])
            owners.append(book)
            ends.append(end - 1)
        self._written = {}
        if batch.state_slots is not None:
            self._same_slots(owners, batch.state_slots.tolist())
            self._fold(batch, owners, salt)
        if len(set(batch.slot_mapping.tolist())) != len(tokens):
            self.wrong.append("two tokens of one pass are written to one place")
        by_end = dict(zip(ends, owners, strict=True))
        return self._tokens(batch, [by_end[at] for at in batch.logits_indices.tolist()], salt)

    def _go_on(self, book: Book, request: Request, first: int, size: int, salt: int) -> None:
        """Bring a book to where a chunk begins: behind what was cached, or back to what is computed again."""
        if request.retractions != book.retractions:
            book.retractions = request.retractions
            book.sums, book.last, book.folds, book.slot = [], [], [], 0
            self.seen["retracted"] += 1
        known = len(book.sums)
        if first < known:
            del book.sums[first:], book.last[first:], book.folds[first:]
        elif first > known:
            if known or first % size:
                self.wrong.append(f"{request.id} goes on at {first} and has {known} tokens in the pool")
            positions = np.arange(first, dtype=np.int32)
            cells, last_cells = self._cells(np.array(book.tokens[:first], np.int32), positions, salt)
            _extend(book.sums, cells)
            _extend(book.last, last_cells)
            if "states" in self.state.kv.pools():
                _fold(book.folds, book.tokens[:first], salt)
            self.seen["tokens_from_cache"] += first

    def _cells(self, tokens: Int32, positions: Int32, salt: int) -> tuple[list[int], list[int]]:
        """What each token leaves in the pool, over all layers; of the last one apart, if it alone has a window."""
        pair = (tokens.astype(np.uint64) << np.uint64(32)) | positions.astype(np.uint64)
        parts = mix(mix(pair ^ np.uint64(salt)) + _PARTS)
        if self.limits.partial_window is None:
            return parts.sum(axis=0, dtype=np.uint64).tolist(), []
        both = parts[:-2].sum(axis=0, dtype=np.uint64), parts[-2:].sum(axis=0, dtype=np.uint64)
        return both[0].tolist(), both[1].tolist()

    def _same_slots(self, books: list[Book], slots: list[int]) -> None:
        for book, slot in zip(books, slots, strict=True):
            if not slot or book.slot not in (0, slot):
                self.wrong.append(f"{book.request.id} has state slot {slot} and had {book.slot}")
            book.slot = slot
        if len(set(slots)) != len(slots):
            self.wrong.append(f"state slots {slots} are not all different")

    def _fold(self, batch: ForwardBatch, books: list[Book], salt: int) -> None:
        """Take recurrent states on by this pass's tokens, from wherever their slots have them."""
        for source, target in [] if batch.restored_states is None else batch.restored_states.tolist():
            self._states[target] = self._states.get(source, -1)
            self.seen["states_from_snapshots"] += 1
        starts, positions = batch.query_start_loc.tolist(), batch.positions.tolist()
        for at, book in enumerate(books):
            first = positions[starts[at]]
            before = self._states.get(book.slot, -1) if first else 0
            if before != (book.folds[first - 1] if first else 0):
                self.wrong.append(f"{book.request.id} goes on at {first} with another's recurrent state")
            _fold(book.folds, book.tokens[first : first + starts[at + 1] - starts[at]], salt)
            self._written[book.slot] = book.folds[-1]

    def _tokens(self, batch: ForwardBatch, books: list[Book], salt: int) -> list[tuple[Book, int]]:
        if not books:
            return []
        window, partial = self.limits.window, self.limits.partial_window
        sums = [_seen(one.sums, window) + _seen(one.last, partial) for one in books]
        digest = mix(np.array([one & _MASK for one in sums], np.uint64) ^ np.uint64(salt))
        if any(one.params.temperature for one in books):
            draws = np.array([(one.seed + len(one.tokens)) & _MASK for one in books], np.uint64)
            sampled = np.array([one.params.temperature > 0 for one in books])
            digest = np.where(sampled, mix(digest ^ mix(draws)), digest)
        vocabulary = self.limits.vocab_size
        if not any(one.params.adjusts for one in books):
            return list(zip(books, (digest % np.uint64(vocabulary)).tolist(), strict=True))
        return [(one, self._adjusted(one, value)) for one, value in zip(books, digest.tolist(), strict=True)]

    def _adjusted(self, book: Book, digest: int) -> int:
        """A token, with what its request wants done to logits."""
        params, vocabulary = book.params, self.limits.vocab_size
        if not params.adjusts:
            return digest % vocabulary
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else self.limits.eos_token_ids)}
        number, ruled_out = wish(params, book.tokens[: book.prompt], book.output, ends)
        token = _add(digest, number) % vocabulary
        while token in ruled_out:
            token = (token + 1) % vocabulary
        self.seen["tokens_adjusted"] += 1
        return token


def may_run(state: SchedulerState) -> bool:
    """Whether a forward pass may run, by what the state says and not by its own conclusion."""
    return state.healthy and not state.paused and not state.gate.holds


def _add(one: int, other: int) -> int:
    return (one + other) & _MASK


def _extend(sums: list[int], cells: list[int]) -> None:
    if cells:
        cells = [_add(cells[0], sums[-1] if sums else 0), *cells[1:]]
        sums += accumulate(cells, _add)


def _fold(folds: list[int], tokens: list[int], salt: int) -> None:
    state = folds[-1] if folds else 0
    for token in tokens:
        state = ((state ^ salt) * 0x9E3779B97F4A7C15 + token + 1) & _MASK
        folds.append(state)


def _seen(sums: list[int], window: int | None) -> int:
    """Over what the last token sees."""
    if not sums:
        return 0
    return sums[-1] - (sums[-window - 1] if window is not None and len(sums) > window else 0)
