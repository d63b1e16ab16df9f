"""What the scheduler looked like after its last step, for readers on other threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from devicekit.scheduling.audit import PoolAudit
from devicekit.scheduling.interface import EngineScheduler
from devicekit.scheduling.messages import Blocker
from devicekit.scheduling.requests import CacheFigures
from devicekit.weights.occupation import HOLD as RELEASED
from devicekit.weights.occupation import MemoryTag
from devicekit.weights.store import HOLD as UNTRUSTED


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state after a step, paused or not."""

    running: int
    prefilling: int
    waiting: int
    paused: bool
    # Why nothing is generated besides a pause: memory is released, weights are missing.
    holds: tuple[str, ...]
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
        """Whether nothing is generated on purpose."""
        return self.paused or bool(self.holds)

    @property
    def pages_used(self) -> int:
        """Pages that requests hold."""
        return self.pages_total - self.pages_free - self.pages_cached


class _Noted(NamedTuple):
    """Everything in a snapshot that changes, as plain values that later steps do not change."""

    steps: int
    computed: int
    running: int
    prefilling: int
    waiting: int
    work: list[tuple[str, int]]
    pages: int
    in_use: int
    cached: int
    prompt_tokens: int
    cached_tokens: int
    invalid_logits: int
    epoch: int
    paused: bool
    holds: Mapping[str, str]
    failure: str
    weight_version: str
    unbalanced: PoolAudit | None


class Observation:
    """The scheduler's state for readers on other threads: as after its last step, or at the beginning.

    A step costs a note of plain numbers. It becomes a `Snapshot` when somebody reads it, on that thread.
    """

    def __init__(self, scheduler: EngineScheduler) -> None:
        self._state = scheduler.state
        self._noted: _Noted
        self.note(0, 0)
        self._shown = (self._noted, _snapshot(self._noted))

    def note(self, steps: int, computed_tokens: int) -> None:
        """Record the scheduler's state, from its own thread."""
        state = self._state
        requests, gate, kv = state.requests, state.gate, state.kv
        figures, prefix = requests.cache_figures, kv.prefix
        self._noted = _Noted(
            steps,
            computed_tokens,
            len(requests.running.requests),
            len(requests.prefilling),
            len(requests.waiting),
            state.work(),
            kv.pages.num_pages,
            kv.pages.in_use,
            0 if prefix is None else prefix.evictable,
            figures.prompt_tokens,
            figures.cached_tokens,
            requests.invalid_logits,
            gate.epoch,
            gate.paused,
            _NO_HOLDS if not gate.holds else dict(gate.holds),
            gate.failure,
            requests.weight_version,
            kv.unbalanced,
        )

    @property
    def failure(self) -> str:
        """As `Snapshot.failure`, without making a snapshot."""
        return self._noted.failure

    @property
    def snapshot(self) -> Snapshot:
        """The state after the last step; the same object until there is another. From any thread."""
        noted = self._noted
        known, shown = self._shown
        if known is not noted:
            shown = _snapshot(noted)
            self._shown = (noted, shown)
        return shown


_NO_HOLDS: Mapping[str, str] = MappingProxyType({})


def _snapshot(noted: _Noted) -> Snapshot:
    figures = CacheFigures(noted.prompt_tokens, noted.cached_tokens)
    return Snapshot(
        running=noted.running,
        prefilling=noted.prefilling,
        waiting=noted.waiting,
        paused=noted.paused,
        holds=tuple(noted.holds.values()),
        epoch=noted.epoch,
        failure=noted.failure,
        weight_version=noted.weight_version,
        pages_total=noted.pages,
        pages_free=noted.pages - noted.in_use,
        pages_cached=noted.cached,
        blockers=tuple(Blocker(name, count) for name, count in noted.work if count),
        steps=noted.steps,
        computed_tokens=noted.computed,
        no_weights=_no_weights(noted.holds),
        cache_hit_rate=figures.hit_rate,
        invalid_logits=noted.invalid_logits,
        unbalanced="" if noted.unbalanced is None else str(noted.unbalanced),
    )


def _no_weights(holds: Mapping[str, str]) -> str:
    """Why requests would wait for weights, which may never come."""
    if UNTRUSTED in holds:
        return holds[UNTRUSTED]
    released = holds.get(RELEASED, "")
    return released if MemoryTag.WEIGHTS.value in released else ""
