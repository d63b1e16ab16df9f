"""How an engine is driven: its control verbs, posted and stepped until answered, and its requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from devicekit.engine.generation import Generation
from devicekit.scheduling.audit import PoolAudit
from devicekit.scheduling.errors import InvalidOperation
from devicekit.scheduling.interface import EngineScheduler
from devicekit.scheduling.messages import (
    Abort,
    AbortReply,
    Blocker,
    Continue,
    Drain,
    DrainReply,
    Flush,
    FlushReply,
    Operation,
    Pause,
    PauseMode,
    PauseReply,
    Reply,
    Selector,
    Step,
    UpdateReply,
    UpdateWeights,
    UpdateWeightsFromDisk,
)
from devicekit.scheduling.resting import LOOK, idle_seconds
from devicekit.weights.operations import MemoryReply, ReleaseMemory, ResumeMemory

_R = TypeVar("_R", bound=Reply)


class EngineVerbs:
    """What an operator does to an engine. Whoever steps the scheduler keeps the replies in `_replies`."""

    scheduler: EngineScheduler
    _replies: dict[str, Reply]
    _ids: Iterator[int]

    def step(self) -> Step:
        """One step of the scheduler."""
        raise NotImplementedError

    def flush(self, timeout: float | None = None, *, empty_cache: bool | None = None) -> FlushReply:
        """Forget every logical cache; with ``timeout`` (seconds) wait for the engine to be idle first."""
        return self.perform(Flush(self._next_id("flush"), timeout, empty_cache), FlushReply)

    def pause(self, mode: PauseMode = PauseMode.ABORT) -> PauseReply:
        """Start no forward pass until `continue_generation`."""
        return self.perform(Pause(self._next_id("pause"), mode), PauseReply)

    def continue_generation(self, *, empty_cache: bool | None = None) -> PauseReply:
        """End a pause, emptying the allocator's cache first unless told otherwise."""
        return self.perform(Continue(self._next_id("continue"), empty_cache), PauseReply)

    def abort(self, request_id: str) -> AbortReply:
        """End one request."""
        return self.perform(Abort(self._next_id("abort"), request_id), AbortReply)

    def drain(self, timeout: float | None = None) -> DrainReply:
        """Let running requests end and start no others, then pause."""
        return self.perform(Drain(self._next_id("drain"), timeout), DrainReply)

    def release_memory(self, *tags: str, backup_weights: bool = False) -> MemoryReply:
        """Give the memory of regions back (`MemoryTag`; none named: all). Refused unless idle."""
        operation = ReleaseMemory(self._next_id("release"), tags, backup_weights)
        return self.perform(operation, MemoryReply)

    def resume_memory(self, *tags: str) -> MemoryReply:
        """Take the memory of regions again."""
        return self.perform(ResumeMemory(self._next_id("resume"), tags), MemoryReply)

    def update_weights(self, operation: UpdateWeights) -> UpdateReply:
        """Run any weight update of `devicekit.weights.operations`."""
        return self.perform(operation, UpdateReply)

    def update_weights_from_disk(
        self,
        path: str | Path,
        *,
        flush_cache: bool = True,
        empty_cache: bool | None = None,
        abort_all_requests: bool = False,
        weight_version: str | None = None,
        selector: Selector = Selector.ALL,
    ) -> UpdateReply:
        """Replace the weights by another checkpoint of the same architecture.

        At once while paused; otherwise when no request is in flight. A draft model is there to be selected once it
        was registered (``engine.weights.register_draft``).
        """
        operation = UpdateWeightsFromDisk(
            self._next_id("update"),
            flush_cache=flush_cache,
            empty_cache=empty_cache,
            abort_all_requests=abort_all_requests,
            weight_version=weight_version,
            selector=selector,
            path=str(path),
        )
        return self.perform(operation, UpdateReply)

    def blockers(self) -> tuple[Blocker, ...]:
        """Every reason for not being idle."""
        return self.scheduler.blockers()

    def audit(self) -> PoolAudit:
        """Where every page, request row and state slot is, pool by pool. Changes nothing."""
        return self.scheduler.audit()

    def perform(self, operation: Operation, kind: type[_R]) -> _R:
        """Post an operation and step until it is answered.

        A refusal that never reached a handler is filled into a reply of the expected type.
        """
        self.post(operation)
        while (reply := self.take_reply(operation.id)) is None:
            if not self.step().ran:  # it waits for time to pass, or for another thread
                self.scheduler.wait(LOOK)
        if isinstance(reply, kind):
            return reply
        return kind(**{field.name: getattr(reply, field.name) for field in dataclasses.fields(reply)})

    def post(self, operation: Operation) -> None:
        """Queue an operation of the caller's own making; `take_reply` has its answer after some steps."""
        self.scheduler.post(operation)

    def take_reply(self, operation_id: str) -> Reply | None:
        """The answer to a posted operation, once; ``None`` while there is none."""
        return self._replies.pop(operation_id, None)

    def _start(self, generations: Sequence[Generation]) -> None:
        """The first step of requests; raises InvalidOperation if nothing will let them run."""
        scheduler = self.scheduler
        scheduler.wait(0)  # so that the next wait tells only of what is posted after this step's look
        self.step()
        standstill = scheduler.state.gate.standstill
        if (
            standstill
            and idle_seconds(scheduler.state, scheduler.control) is None
            and not scheduler.wait(0)
            and not all(generation.done for generation in generations)
        ):
            raise InvalidOperation(
                f"No request can end now: {standstill}. End that first (continue_generation(), resume_memory(), a "
                "weight update), or submit() and wait."
            )

    def _abort(self, generations: Sequence[Generation]) -> None:
        for generation in generations:
            if not generation.done:
                self.abort(generation.id)

    def _advance(self) -> None:
        """One step, after a short sleep where only time or another thread can bring the end nearer."""
        if idle_seconds(self.scheduler.state, self.scheduler.control) != 0:
            self.scheduler.wait(LOOK)
        self.step()

    def _next_id(self, kind: str) -> str:
        return f"{kind}-{next(self._ids)}"
