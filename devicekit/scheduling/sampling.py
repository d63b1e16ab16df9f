"""Sampling parameters of the running batch, as columns. A batch in which all are greedy carries none."""

from __future__ import annotations

import numpy as np

from devicekit.scheduling.batch import Float32, ForwardBatch, Int32, Int64, SamplingArrays
from devicekit.scheduling.request import Request

_TEMPERATURE, _TOP_P, _MIN_P = range(3)
_GREEDY = (0.0, 1.0, 0.0)


class SamplingColumns:
    """One column per running request, kept beside the running batch's own."""

    def __init__(self, capacity: int) -> None:
        self._floats: Float32 = np.zeros((3, capacity), np.float32)
        self._floats[_TOP_P] = 1.0
        self._top_k: Int32 = np.zeros(capacity, np.int32)
        self._seed: Int64 = np.zeros(capacity, np.int64)
        self._sampled = 0  # running requests that are not greedy
        self.logprobs: dict[str, int] = {}  # running requests that want log-probabilities, and how many

    @property
    def idle(self) -> bool:
        """Whether every running request takes the likeliest token, and nothing else is asked for."""
        return not (self._sampled or self.logprobs)

    def join(self, column: int, request: Request) -> None:
        """Record what a request that joins asks for. A greedy one needs no call: its column is greedy already."""
        params = request.params
        if params.temperature > 0:
            self._sampled += 1
            self._floats[:, column] = (params.temperature, params.top_p, params.min_p)
            self._top_k[column] = params.top_k
            self._seed[column] = request.seed or 0
        if params.logprobs is not None:
            self.logprobs[request.id] = params.logprobs

    def leave(self, column: int, request: Request) -> None:
        if request.params.temperature > 0:
            self._sampled -= 1
            self._floats[:, column] = _GREEDY
        if self.logprobs:
            self.logprobs.pop(request.id, None)

    def move(self, column: int, to: int) -> None:
        """Move a request's entries to another column."""
        self._floats[:, to] = self._floats[:, column]
        self._top_k[to] = self._top_k[column]
        self._seed[to] = self._seed[column]
        self._floats[:, column] = _GREEDY

    def fill(self, batch: ForwardBatch, positions: Int32, joining: list[Request]) -> None:
        """Set a batch's ``sampling``.

        Args:
            positions: [n] position of each running request's input token.
            joining: requests whose prompt this pass completes; their tokens follow those of the batch.
        """
        if not self._sampled and all(one.params.temperature == 0 for one in joining):
            return
        count = len(positions)
        if not joining:
            floats, drawn = self._floats[:, :count], positions.astype(np.int64)
            drawn += 1
            batch.sampling = SamplingArrays(
                temperature=floats[_TEMPERATURE],
                top_k=self._top_k[:count],
                top_p=floats[_TOP_P],
                min_p=floats[_MIN_P],
                seed=self._seed[:count],
                position=drawn,
            )
            return
        extra = np.array(
            [(one.params.temperature, one.params.top_p, one.params.min_p) for one in joining], np.float32
        ).reshape(-1, 3)
        floats = np.concatenate((self._floats[:, :count], extra.T), axis=1)
        batch.sampling = SamplingArrays(
            temperature=floats[_TEMPERATURE],
            top_k=_joined(self._top_k[:count], [one.params.top_k for one in joining]),
            top_p=floats[_TOP_P],
            min_p=floats[_MIN_P],
            seed=np.concatenate((self._seed[:count], np.array([one.seed or 0 for one in joining], np.int64))),
            position=np.concatenate(
                (positions.astype(np.int64) + 1, np.array([one.total for one in joining], np.int64))
            ),
        )


def _joined(column: Int32, extra: list[int]) -> Int32:
    return np.concatenate((column, np.array(extra, np.int32)))
