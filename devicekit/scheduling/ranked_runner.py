"""One forward pass on every rank: its outcome is agreed, and rank 0's tokens are everybody's."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from devicekit.contract.records import ErrorKind
from devicekit.scheduling.batch import ForwardBatch, ModelLimits, Runner, StepOutput
from devicekit.scheduling.errors import RankLost, RanksFailed
from devicekit.scheduling.rank_group import Question, RankGroup

if TYPE_CHECKING:
    import torch

# From harmless to worst: the worst of any rank is the outcome of all.
_OUTCOMES = (None, ErrorKind.OUT_OF_MEMORY, ErrorKind.WRONG_DEVICE, ErrorKind.DEVICE_LOST)
_FAILED = _OUTCOMES.index(ErrorKind.WRONG_DEVICE)  # and whatever else says nothing of the device


class PassFailed(RanksFailed):
    """A forward pass failed on some ranks. ``kind`` is what that means for all of them."""

    def __init__(self, failures: dict[int, str], kind: ErrorKind | None = None) -> None:
        super().__init__(failures)
        self.kind = kind

    def __reduce__(self) -> tuple[type[PassFailed], tuple[dict[int, str], ErrorKind | None]]:  # type: ignore[override]
        return type(self), (self.failures, self.kind)


class RankedRunner:
    """One rank's runner among the others'.

    Tokens are drawn on every rank and taken from rank 0: they are few, and ranks that draw for themselves differ
    as soon as one rounds differently.
    """

    def __init__(
        self,
        runner: Runner,
        classify: Callable[[BaseException], ErrorKind | None],
        ranks: RankGroup,
    ) -> None:
        self._runner = runner
        self._device_error = classify
        self._ranks = ranks

    @property
    def limits(self) -> ModelLimits:
        return self._runner.limits

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._runner.named_weights()

    def step(self, batch: ForwardBatch) -> StepOutput:
        """Compute, and hear how the others fared.

        Raises:
            PassFailed: on every rank, if the pass failed on any.
        """
        ranks = self._ranks
        if ranks.lost is not None:
            raise PassFailed({rank: str(ranks.lost) for rank in ranks.lost.ranks}, ErrorKind.DEVICE_LOST)
        output: StepOutput | None = None
        failure, outcome = "", 0
        try:
            output = self._runner.step(batch)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            kind = self._device_error(error)
            outcome = _FAILED if kind is None or kind not in _OUTCOMES else _OUTCOMES.index(kind)
        try:
            return self._agreed(batch, output, outcome, failure)
        except RankLost as lost:
            failures = dict.fromkeys(lost.ranks or (ranks.rank,), str(lost))
        raise PassFailed(failures, ErrorKind.DEVICE_LOST)

    def classify(self, error: BaseException) -> ErrorKind | None:
        """What an error of a pass means, on every rank alike."""
        return error.kind if isinstance(error, PassFailed) else self._device_error(error)

    def _agreed(
        self, batch: ForwardBatch, output: StepOutput | None, outcome: int, failure: str
    ) -> StepOutput:
        digest = zlib.crc32(batch.slots.tobytes(), zlib.crc32(batch.tokens.tobytes()))
        table = self._ranks.ask(
            Question.PASS,
            outcome,
            digest=digest,
            tokens=None if output is None else output.tokens,
        )
        worst = int(table[:, 0].max())
        if output is not None and not worst:
            tokens = table[0, 3 : 3 + len(batch.wanted)].astype(np.int32)
            return StepOutput(tokens, output.logprobs)
        failed = np.flatnonzero(table[:, 0]).tolist()
        texts = self._ranks.texts(failure)
        kind = _OUTCOMES[worst]
        raise PassFailed({rank: texts[rank] for rank in failed}, kind)
