"""One forward pass on every rank: its outcome is agreed, and rank 0's tokens are everybody's."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import numpy as np
import torch

from devicekit.contract.records import ErrorKind
from devicekit.scheduling.batch import ForwardBatch, ModelLimits, Runner, StepOutput
from devicekit.scheduling.errors import PassFailed, RankLost, describe_failures
from devicekit.scheduling.ranks.group import Question, RankGroup

# From harmless to worst: the worst of any rank is the outcome of all.
_OUTCOMES = (None, ErrorKind.OUT_OF_MEMORY, ErrorKind.WRONG_DEVICE, ErrorKind.DEVICE_LOST)
_FAILED = _OUTCOMES.index(ErrorKind.WRONG_DEVICE)  # and whatever else says nothing of the device


class PassOutOfMemory(torch.OutOfMemoryError):
    """A forward pass ran out of memory on some ranks, and counts as such on all."""


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
        self._classify = classify
        self._ranks = ranks

    @property
    def limits(self) -> ModelLimits:
        return self._runner.limits

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._runner.named_weights()

    def step(self, batch: ForwardBatch) -> StepOutput:
        """Compute, and hear how the others fared.

        Raises:
            PassOutOfMemory, PassFailed: on every rank, if the pass failed on any.
        """
        ranks = self._ranks
        if ranks.lost is not None:
            raise PassFailed(str(ranks.lost), ErrorKind.DEVICE_LOST)
        output: StepOutput | None = None
        failure, outcome = "", 0
        try:
            output = self._runner.step(batch)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            kind = self._classify(error)
            outcome = _FAILED if kind is None or kind not in _OUTCOMES else _OUTCOMES.index(kind)
        try:
            return self._agreed(batch, output, outcome, failure)
        except RankLost as lost:
            message = str(lost)
        raise PassFailed(message, ErrorKind.DEVICE_LOST)

    def _agreed(
        self, batch: ForwardBatch, output: StepOutput | None, outcome: int, failure: str
    ) -> StepOutput:
        digest = zlib.crc32(batch.slot_mapping.tobytes(), zlib.crc32(batch.input_ids.tobytes()))
        table = self._ranks.ask(
            Question.PASS,
            outcome,
            digest=digest,
            tokens=None if output is None else output.tokens,
        )
        worst = int(table[:, 0].max())
        if output is not None and not worst:
            tokens = table[0, 3 : 3 + len(batch.logits_indices)].astype(np.int32)
            invalid = bool(len(tokens)) and int(tokens.min()) < 0
            return StepOutput(tokens, output.logprobs, output.prompt_logprobs, invalid)
        failed = np.flatnonzero(table[:, 0]).tolist()
        texts = self._ranks.texts(failure)
        message = describe_failures({rank: texts[rank] for rank in failed})
        if _OUTCOMES[worst] is ErrorKind.OUT_OF_MEMORY:
            raise PassOutOfMemory(message)
        raise PassFailed(message, _OUTCOMES[worst])
