"""What the scheduler looked like after its last step, for readers on other threads."""

from __future__ import annotations

from dataclasses import dataclass

from devicekit.scheduling.interface import EngineScheduler
from devicekit.scheduling.messages import Blocker
from devicekit.scheduling.state import SchedulerState
from devicekit.weights.occupation import HOLD as RELEASED
from devicekit.weights.occupation import MemoryTag
from devicekit.weights.store import HOLD as UNTRUSTED


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Taken after every step, paused or not."""

    running: int
    prefilling: int
    waiting: int
    paused: bool
    holds: tuple[
        str, ...
    ]  # why nothing is generated besides a pause: memory is released, weights are missing
    epoch: int
    failure: str  # why nothing will run any more; empty while all is well
    weight_version: str
    pages_total: int
    pages_free: int
    pages_cached: int  # held by the prefix cache alone: evictable
    blockers: tuple[Blocker, ...]
    steps: int
    computed_tokens: int  # prompt and output tokens, since the start
    # Why requests cannot be served until somebody writes weights; empty while they can, or only wait.
    no_weights: str = ""
    cache_hit_rate: float | None = None  # share of prompt tokens found cached since the last flush
    invalid_logits: int = 0  # tokens so far for which the logits were NaN or infinite
    unbalanced: str = ""  # what went missing from a pool, if anything did

    @property
    def healthy(self) -> bool:
        """Whether forward passes can run at all."""
        return not self.failure

    @property
    def resting(self) -> bool:
        """Whether nothing is generated, on purpose."""
        return self.paused or bool(self.holds)

    @property
    def pages_used(self) -> int:
        """Pages that requests hold."""
        return self.pages_total - self.pages_free - self.pages_cached


def take_snapshot(scheduler: EngineScheduler, steps: int, computed_tokens: int) -> Snapshot:
    """Look at a scheduler, from its own thread."""
    state = scheduler.state
    pages, prefix = state.kv.pages, state.kv.prefix
    return Snapshot(
        running=len(state.running),
        prefilling=len(state.prefilling),
        waiting=len(state.waiting),
        paused=state.paused,
        holds=tuple(state.gate.holds.values()),
        epoch=state.epoch,
        failure=state.failure,
        weight_version=state.weight_version,
        pages_total=pages.num_pages,
        pages_free=pages.num_pages - pages.in_use,
        pages_cached=prefix.evictable if prefix is not None else 0,
        blockers=state.blockers(),
        steps=steps,
        computed_tokens=computed_tokens,
        no_weights=_no_weights(state),
        cache_hit_rate=state.requests.cache_figures.hit_rate,
        invalid_logits=state.invalid_logits,
        unbalanced="" if state.unbalanced is None else str(state.unbalanced),
    )


def _no_weights(state: SchedulerState) -> str:
    """Why requests would wait for weights, which may never come."""
    if UNTRUSTED in state.gate.holds:
        return state.gate.holds[UNTRUSTED]
    released = state.gate.holds.get(RELEASED, "")
    return released if MemoryTag.WEIGHTS.value in released else ""
