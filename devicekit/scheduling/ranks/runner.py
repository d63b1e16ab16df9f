"""One forward pass on every rank: its outcome is agreed, and rank 0's tokens are everybody's."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import numpy as np
import torch

from devicekit.contract.records import ErrorKind
from devicekit.scheduling.batch import ForwardBatch, Int64, ModelLimits, Runner, SplitRunner, StepOutput
from devicekit.scheduling.errors import PassFailed, RankLost, describe_failures
from devicekit.scheduling.ranks.group import RankGroup
from devicekit.scheduling.ranks.table import Question

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
        try:
            if isinstance(self._runner, SplitRunner) and self._runner.is_split:
                return self._step_together(self._runner, batch)
            return self._step_apart(batch)
        except RankLost as lost:
            message = str(lost)
        raise PassFailed(message, ErrorKind.DEVICE_LOST)

    def _step_apart(self, batch: ForwardBatch) -> StepOutput:
        """Each by itself: whatever happens to one can happen while the others compute."""
        output: StepOutput | None = None
        failure, outcome = "", 0
        try:
            output = self._runner.step(batch)
        except Exception as error:
            failure, outcome = self._outcome(error)
        digest = _digest(batch)
        tokens = None if output is None else output.tokens
        table = self._ranks.ask(Question.PASS, outcome, digest=digest, tokens=tokens)
        self._raise_worst(table, failure)
        return _of_rank_0(table, batch, output)

    def _step_together(self, runner: SplitRunner, batch: ForwardBatch) -> StepOutput:
        """All prepare, agree that they can, and then run: in the middle of it nobody may stay away.

        Who fails there leaves, so that those who wait for it hear of it. That is the end for all.
        """
        ranks = self._ranks
        run: Callable[[], StepOutput] | None = None
        failure, outcome = "", 0
        try:
            run = runner.prepare(batch)
        except Exception as error:
            failure, outcome = self._outcome(error)
        self._raise_worst(ranks.ask(Question.PREPARED, outcome, digest=_digest(batch)), failure)
        output: StepOutput | None = None
        if run is not None:
            with ranks.exchanging():
                output = run()
        tokens = None if output is None else output.tokens
        return _of_rank_0(ranks.ask(Question.PASS, tokens=tokens), batch, output)

    def _outcome(self, error: Exception) -> tuple[str, int]:
        kind = self._classify(error)
        outcome = _FAILED if kind is None or kind not in _OUTCOMES else _OUTCOMES.index(kind)
        return f"{type(error).__name__}: {error}", outcome

    def _raise_worst(self, table: Int64, failure: str) -> None:
        worst = int(table[:, 0].max())
        if not worst:
            return
        failed = np.flatnonzero(table[:, 0]).tolist()
        texts = self._ranks.texts(failure)
        message = describe_failures({rank: texts[rank] for rank in failed})
        if _OUTCOMES[worst] is ErrorKind.OUT_OF_MEMORY:
            raise PassOutOfMemory(message)
        raise PassFailed(message, _OUTCOMES[worst])


def _digest(batch: ForwardBatch) -> int:
    return zlib.crc32(batch.slot_mapping.tobytes(), zlib.crc32(batch.input_ids.tobytes()))


def _of_rank_0(table: Int64, batch: ForwardBatch, output: StepOutput | None) -> StepOutput:
    tokens = table[0, 3 : 3 + len(batch.logits_indices)].astype(np.int32)
    invalid = bool(len(tokens)) and int(tokens.min()) < 0
    if output is None:  # nobody's has failed, so there is one
        return StepOutput(tokens, invalid=invalid)
    return StepOutput(tokens, output.logprobs, output.prompt_logprobs, invalid)
