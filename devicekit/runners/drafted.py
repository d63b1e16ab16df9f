"""A draft model beside its target: it sees every pass, and has its keys and values on the same pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from devicekit.contract.errors import ConfigurationError
from devicekit.scheduling.batch import ForwardBatch, ModelLimits, Runner, StepOutput

if TYPE_CHECKING:
    import torch

    from devicekit.memory.state import StateLayout


class Draft(Runner, Protocol):
    """A runner that may serve as a draft."""

    @property
    def states(self) -> StateLayout | None: ...


class DraftedRunner:
    """Runs a draft and then its target on every batch. Tokens are the target's.

    Prefixes, chunks and retractions apply to both alike. The draft's own choice is in ``proposed``.

    Raises:
        ConfigurationError: the draft cannot follow the target.
    """

    def __init__(self, target: Runner, draft: Draft) -> None:
        self.target = target
        self.draft = draft
        # The draft's own choice for each wanted position of the last pass.
        self.proposed: StepOutput | None = None
        own, others = target.limits, draft.limits
        if others.vocab_size < own.vocab_size:
            raise ConfigurationError(
                f"a draft reads every token of its target: it has {others.vocab_size} of {own.vocab_size}"
            )
        if draft.states is not None:
            raise ConfigurationError("a draft with recurrent layers cannot follow its target")
        # A page may be given back early only when neither looks at it any more.
        both = own.window is not None and others.window is not None
        self._limits = replace(
            own,
            max_positions=min(own.max_positions, others.max_positions),
            window=max(own.window or 0, others.window or 0) if both else None,
        )

    @property
    def limits(self) -> ModelLimits:
        return self._limits

    def step(self, batch: ForwardBatch) -> StepOutput:
        """Run both over a batch."""
        self.proposed = self.draft.step(
            replace(
                batch,
                sampling=None,
                top_logprobs=None,
                logprobs=None,
                masks=None,
                scored=None,
                adjustments=None,
                state_slots=None,
                restored_states=None,
                kept_states=None,
                window_pages=None,  # the draft's layers keep every page
            )
        )
        return self.target.step(batch)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The target's weights."""
        return self.target.named_weights()
