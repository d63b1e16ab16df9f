"""Log-probabilities: which ones a pass is to give, and to whom they go afterwards.

Those of output tokens come with each token. Those of prompt tokens come with the chunks in which the prompt is
computed; one pass scores as many positions as fit `SCORED_VALUES` logits, so that a long prompt never holds its
length times the vocabulary at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from devicekit.scheduling.batch import (
    ForwardBatch,
    Int32,
    Int64,
    Logprobs,
    LogprobWishes,
    Picks,
    ScoredPositions,
    StepOutput,
)
from devicekit.scheduling.kv_cache.layers import Chunk
from devicekit.scheduling.request import Request, TokenLogprob
from devicekit.scheduling.requests import Requests

SCORED_VALUES = 1 << 24  # logits of prompt positions in one pass: 64 MiB


def positions_at_once(vocabulary: int) -> int:
    """How many prompt positions one pass may score."""
    return max(1, SCORED_VALUES // vocabulary)


def fill_wishes(batch: ForwardBatch, requests: Requests, chunks: Sequence[Chunk], known: Int32) -> None:
    """Set a batch's ``logprobs`` and ``scored``; ``known`` are the tokens of every row."""
    running, decoding = requests.running, len(requests.running.requests)
    joining = [request for request, _, end in chunks if end == request.total]
    asking = sorted((requests[one].column, one) for one in running.sampling.logprobs)
    wishes = [(place, requests[one].params) for place, one in asking]
    wishes += [
        (decoding + at, one.params) for at, one in enumerate(joining) if one.params.logprobs is not None
    ]
    if not wishes and not any(one.scored is not None for one, _, _ in chunks):
        return
    if wishes:
        batch.top_logprobs = max(params.logprobs or 0 for _, params in wishes)
        raw = np.zeros(len(batch.logits_indices), np.bool_)
        raw[[place for place, params in wishes if params.raw_logprobs]] = True
        picks = _picks([(place, params.logprob_ids) for place, params in wishes])
        batch.logprobs = LogprobWishes(raw, picks)
    batch.scored = _scored(batch, decoding, chunks, known)


def _scored(
    batch: ForwardBatch, decoding: int, chunks: Sequence[Chunk], known: Int32
) -> ScoredPositions | None:
    places: list[Int64] = []
    targets: list[Int32] = []
    picked: list[tuple[int, tuple[int, ...]]] = []
    top = count = 0
    for at, (request, start, first, last) in enumerate(_scored_chunks(chunks)):
        if last <= first:
            continue
        begin = int(batch.query_start_loc[decoding + at])
        places.append(np.arange(first, last, dtype=np.int64) + (begin - start))
        targets.append(known[request.row, first + 1 : last + 1].copy())
        if request.params.logprob_ids:
            picked += [(count + one, request.params.logprob_ids) for one in range(last - first)]
        top = max(top, request.params.logprobs or 0)
        count += last - first
    if not count:
        return None
    return ScoredPositions(np.concatenate(places), np.concatenate(targets), top, _picks(picked))


def _scored_chunks(chunks: Sequence[Chunk]) -> Iterator[tuple[Request, int, int, int]]:
    """Each chunk's request and start, and which positions of it are scored."""
    for request, start, end in chunks:
        if request.scored is None:
            yield request, start, start, start
        else:
            yield request, start, max(start, request.scored), min(end, len(request.prompt) - 1)


def _picks(wishes: Sequence[tuple[int, tuple[int, ...]]]) -> Picks | None:
    rows = [place for place, ids in wishes for _ in ids]
    if not rows:
        return None
    return Picks(np.array(rows, np.int64), np.array([one for _, ids in wishes for one in ids], np.int64))


def keep_output(running: Sequence[Request], chunks: Sequence[Chunk], result: StepOutput) -> None:
    """Bring the log-probabilities of a pass's tokens to their requests, of which ``running`` decode."""
    logprobs = result.logprobs
    if logprobs is None:
        return
    requests = [*running]
    requests += [request for request, _, end in chunks if end == request.total]
    picked = _Picked(logprobs)
    for at, request in enumerate(requests):
        params = request.params
        if params.logprobs is None:
            continue
        ids = picked.take(params.logprob_ids)
        if (
            not params.max_new_tokens or result.tokens[at] < 0
        ):  # only its prompt is wanted, or there is no token
            continue
        if request.logprobs is None:
            request.logprobs = []
        request.logprobs.append(_entry(logprobs, at, int(result.tokens[at]), params.logprobs, ids))


def keep_prompt(chunks: Sequence[Chunk], result: StepOutput) -> None:
    """Bring the log-probabilities of prompt tokens to their requests."""
    logprobs = result.prompt_logprobs
    if logprobs is None:
        return
    picked = _Picked(logprobs)
    at = 0
    for request, _, first, last in _scored_chunks(chunks):
        for position in range(first, last):
            token = int(request.prompt[position + 1])
            ids = picked.take(request.params.logprob_ids)
            entry = _entry(logprobs, at, token, request.params.logprobs or 0, ids)
            request.prompt_logprobs.append(entry)
            at += 1
        if last > first:
            request.scored = last


class _Picked:
    """The values of chosen ids, in the order in which they were asked for."""

    def __init__(self, logprobs: Logprobs) -> None:
        self._values = [] if logprobs.picked is None else logprobs.picked.tolist()
        self._at = 0

    def take(self, ids: tuple[int, ...]) -> tuple[tuple[int, float], ...]:
        begin, self._at = self._at, self._at + len(ids)
        return tuple(zip(ids, self._values[begin : self._at], strict=True))


def _entry(
    logprobs: Logprobs, at: int, token: int, top: int, picked: tuple[tuple[int, float], ...]
) -> TokenLogprob:
    ids, values = logprobs.top_ids[at, :top], logprobs.top_values[at, :top]
    best = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs.chosen[at]), best, picked)
