"""Changes to logits before a token is chosen: penalties, biases, and no end token before ``min_new_tokens``.

Only a request that asks for one of these has a `LogitAdjuster`. A pass without such requests pays nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from devicekit.scheduling.batch import Float32, Int32, Int64, LogitAdjustments, ModelLimits
from devicekit.scheduling.request import Request

if TYPE_CHECKING:
    from devicekit.scheduling.requests import Requests

_SCALE, _COUNT, _BIAS = range(3)


def adjustments(requests: Requests, joining: Sequence[Request], known: Int32) -> LogitAdjustments | None:
    """The changes to the logits of a pass; ``None`` if no request asks for any.

    Args:
        joining: requests whose prompt the pass completes; their logits follow those of the running batch.
        known: the tokens of every row.
    """
    running = requests.running
    places = {request.id: len(running) + at for at, request in enumerate(joining)}
    rows: list[Int64] = []
    parts: list[tuple[Int64, Float32, Float32]] = []
    for identity, adjuster in requests.adjusted.items():
        request = requests[identity]
        column = request.column
        if column < 0 and identity not in places:
            continue
        total = int(running.view.lengths[column]) if column >= 0 else request.total
        part = adjuster.entries(known[request.row, :total])
        if len(part[0]):
            place = column if column >= 0 else places[identity]
            rows.append(np.full(len(part[0]), place, np.int64))
            parts.append(part)
    if not parts:
        return None
    tokens, scales, offsets = zip(*parts, strict=True)
    return LogitAdjustments(
        np.concatenate(rows), np.concatenate(tokens), np.concatenate(scales), np.concatenate(offsets)
    )


class LogitAdjuster:
    """What one request asks for, and how often each token has come up in its output."""

    def __init__(self, request: Request, limits: ModelLimits) -> None:
        params = request.params
        self._params = params
        self._prompt = self._counted = len(request.prompt)
        self._counts = bool(params.frequency_penalty or params.presence_penalty)
        self._scales = params.repetition_penalty != 1
        self._place: dict[int, int] = {}  # of each token among the entries
        self._tokens: Int64 = np.zeros(64, np.int64)
        self._values: Float32 = np.zeros((3, len(self._tokens)), np.float32)
        for token, bias in params.logit_bias:
            self._set(_BIAS, token, bias)
        if self._scales:
            for token in np.unique(request.prompt).tolist():
                self._set(_SCALE, token, params.repetition_penalty)
        ending = set(params.stop_token_ids) | (set() if params.ignore_eos else limits.eos_token_ids)
        if not params.min_new_tokens:
            ending = set()
        self._lasts = bool(self._counts or self._scales or params.logit_bias)
        self._ending = [self._entry(token) for token in sorted(ending) if token < limits.vocab_size]

    def entries(self, known: Int32) -> tuple[Int64, Float32, Float32]:
        """Tokens, scales and offsets for the token that follows ``known``, prompt and output so far."""
        early = len(known) - self._prompt < self._params.min_new_tokens
        if not (early or self._lasts):
            return self._tokens[:0], self._values[0, :0], self._values[0, :0]
        if self._counts or self._scales:
            for token in known[self._counted :].tolist():
                entry = self._entry(token)
                self._values[_COUNT, entry] += 1
                self._values[_SCALE, entry] = self._params.repetition_penalty
            self._counted = len(known)
        values = self._values[:, : len(self._place)]
        count = values[_COUNT]
        offsets = values[_BIAS] - self._params.frequency_penalty * count
        offsets -= self._params.presence_penalty * (count > 0)
        if early:
            offsets[self._ending] = -np.inf
        return self._tokens[: len(self._place)], values[_SCALE], offsets.astype(np.float32)

    def _set(self, kind: int, token: int, value: float) -> None:
        entry = self._entry(token)  # first: it may replace the array
        self._values[kind, entry] = value

    def _entry(self, token: int) -> int:
        """Index of a token's numbers. A token that is seen for the first time gets neutral ones."""
        entry = self._place.setdefault(token, len(self._place))
        if entry == len(self._tokens):
            self._tokens = np.concatenate((self._tokens, np.zeros_like(self._tokens)))
            self._values = np.concatenate((self._values, np.zeros_like(self._values)), axis=1)
        if self._values[_SCALE, entry] == 0:
            self._tokens[entry] = token
            self._values[_SCALE, entry] = 1
        return entry
