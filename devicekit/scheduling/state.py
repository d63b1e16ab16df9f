"""What the parts of the scheduler share: the pools, the requests, and whether generation is paused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

from devicekit.clock import Clock
from devicekit.release import ReleaseEntry, ReleasePoint, ReleasePoints, SkipReason
from devicekit.scheduling.adjusting import LogitAdjuster
from devicekit.scheduling.agreement import Agreement, Alone
from devicekit.scheduling.audit import PoolAudit
from devicekit.scheduling.batch import Runner
from devicekit.scheduling.kv_cache.manager import KVCacheManager
from devicekit.scheduling.messages import Blocker, Output
from devicekit.scheduling.request import Finish, FinishKind, Request, TokenLogprob, VersionSpan
from devicekit.scheduling.running import RunningBatch
from devicekit.scheduling.waiting import WaitingQueue

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Participant:
    """An engine part that has a cache to forget, or work that keeps the scheduler from being idle."""

    name: str
    flush: Callable[[], None] | None = None
    pending: Callable[[], int] | None = None  # how much unfinished work it has
    # Collects work that has finished; called in every step. Between ranks `pending` may shrink only here, and
    # only by what `SchedulerState.ranks` says has finished on all of them.
    retire: Callable[[], None] | None = None


@dataclass(slots=True)
class SchedulerState:
    """Everything a control operation may look at or change."""

    runner: Runner
    kv: KVCacheManager
    running: RunningBatch
    waiting: WaitingQueue
    releases: ReleasePoints
    clock: Clock
    ranks: Agreement = field(default_factory=Alone)
    weight_version: str = "default"
    weights_epoch: int = 0  # grows whenever a weight changes; prefixes are shared only within one
    prefilling: list[Request] = field(default_factory=list)
    requests: dict[str, Request] = field(default_factory=dict)  # all that are not finished, by id
    outputs: list[Output] = field(default_factory=list)  # since the last step
    participants: list[Participant] = field(default_factory=list)
    # Ids of requests that cost something in every step; all others cost nothing.
    special: set[str] = field(default_factory=set)  # stop conditions of their own
    streaming: set[str] = field(default_factory=set)
    timed: set[str] = field(default_factory=set)  # with a deadline
    adjusted: dict[str, LogitAdjuster] = field(default_factory=dict)  # wishes for its logits
    paused: bool = False
    paused_at: float | None = None
    continue_at: float | None = None  # when the pause ends by itself
    epoch: int = 0
    failure: str = ""  # why nothing will run any more: the device is lost, or another rank
    unbalanced: PoolAudit | None = None  # the first time that ids were found missing: something leaks
    # Ids of operations that wait for the running requests to end: meanwhile no new ones start.
    closed_by: set[str] = field(default_factory=set)
    # Why no forward pass may run, by who says so: memory is released, weights are missing. Requests wait.
    holds: dict[str, str] = field(default_factory=dict)
    # Participants that could not collect their finished work the last time, or say what they have, and why not.
    faults: dict[str, str] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Whether forward passes can run at all."""
        return not self.failure

    @property
    def admitting(self) -> bool:
        """Whether waiting requests may start."""
        return not self.closed_by

    @property
    def may_run(self) -> bool:
        """Whether a forward pass may start."""
        return not (self.failure or self.paused or self.holds)

    def blockers(self) -> tuple[Blocker, ...]:
        """Every reason for not being idle. Waiting requests hold no KV: they count only if they may start."""
        counts = [
            ("running", len(self.running)),
            ("prefilling", len(self.prefilling)),
            ("waiting", len(self.waiting) if self.may_run and self.admitting else 0),
        ]
        counts += [(part.name, self.pending(part)) for part in self.participants]
        return tuple(Blocker(name, count) for name, count in counts if count)

    def pending(self, part: Participant) -> int:
        """How much unfinished work a participant has. One that cannot say may have some: it blocks."""
        if part.pending is None:
            return 0
        asked = f"{part.name}, asked for its work"
        try:
            count = part.pending()
        except Exception as error:
            self._fault(asked, "%s, failed", error)
            return 1
        self.faults.pop(asked, None)
        return count

    def _fault(self, name: str, message: str, error: Exception) -> None:
        """Note a failure, and log it when it is new."""
        if name not in self.faults:
            _log.error(message, name, exc_info=error)
        self.faults[name] = f"{type(error).__name__}: {error}"

    def empty(self, point: ReleasePoint, requested: bool | None = None) -> ReleaseEntry:
        """Pass a release point after something that has been done, and stays done if this fails.

        Returns:
            The ledger's entry; its ``error`` says what failed, here or on another rank.
        """
        began = self.clock.now()
        errors: list[str] = []
        try:
            entry = self.releases.reach(point, requested)
        except Exception as error:
            _log.exception("emptying the cache failed at release point %s", point.value)
            entries = self.releases.ledger.query(point=point, since=began)
            entry = entries[-1] if entries else ReleaseEntry(point, began, False, SkipReason.FAILED)
            errors = [f"{type(error).__name__}: {error}"]
        return replace(entry, error="; ".join(self.ranks.names(errors)))

    def retire(self) -> None:
        """Have every participant collect the work it has finished. One that fails goes on blocking."""
        for part in self.participants:
            if part.retire is None:
                continue
            try:
                part.retire()
            except Exception as error:
                self._fault(part.name, "%s could not collect its finished work", error)
            else:
                self.faults.pop(part.name, None)

    def fail(self, why: str) -> None:
        """Generate no more. The first reason is the one that is told."""
        self.failure = self.failure or why

    def namespace(self, request: Request) -> Hashable:
        """Within which cached prefixes may be shared: never across tenants, adapters or weights."""
        return (request.namespace, self.weights_epoch)

    # -- Requests ---------------------------------------------------------------------------------------------

    def finish(self, request: Request, finish: Finish) -> None:
        """End a request wherever it is, and give back what it holds."""
        self.detach(request)
        self._close(request, finish)

    def complete(self, request: Request, finish: Finish) -> None:
        """End a running request that came to its end, and leave what it computed in the prefix cache.

        Its column stays vacant: call ``running.close_up`` when all that end and join are through.
        """
        self.running.vacate(request)
        self.kv.publish(request)
        self._close(request, finish)

    def _close(self, request: Request, finish: Finish) -> None:
        tokens = self._unreported(request)
        finish = _end_text(request, finish)
        self.kv.free(request)
        del self.requests[request.id]
        if request.listed:
            self.special.discard(request.id)
            self.streaming.discard(request.id)
            self.timed.discard(request.id)
            self.adjusted.pop(request.id, None)
        self.close_span(request)
        self.outputs.append(self.output(request, tokens, finish))

    def give_up(self, message: str) -> None:
        """The device or a rank is gone for good: every request ends, and no other is taken on."""
        self.fail(message)
        for request in list(self.requests.values()):
            self.finish(request, Finish(FinishKind.ERROR, message=message))

    def retract(self, request: Request) -> None:
        """Take a request's KV and put it back among the waiting. Its tokens are kept."""
        self.detach(request)
        request.tokens = self.kv.table.tokens[request.row, : request.total].copy()
        self.kv.free(request)
        request.retractions += 1
        self.waiting.add(request)

    def detach(self, request: Request) -> None:
        """Take a request out of the list it is in."""
        if request.column >= 0:
            self.running.leave(request)
        elif request.row:
            self.prefilling.remove(request)
        else:
            self.waiting.remove(request)

    def unreported(self, request: Request) -> tuple[int, ...]:
        """Output tokens that no `Output` has carried yet."""
        if request.column >= 0:
            self.running.settle(request)
        return self._unreported(request)

    def _unreported(self, request: Request) -> tuple[int, ...]:
        start = len(request.prompt) + request.reported
        if request.row:
            return self.kv.table.read_tokens(request.row, start, request.total)
        return tuple(request.tokens[start:].tolist())

    def take_outputs(self) -> tuple[Output, ...]:
        """What was reported since the last call."""
        if not self.outputs:
            return ()
        outputs, self.outputs = tuple(self.outputs), []
        return outputs

    def output(self, request: Request, tokens: tuple[int, ...], finish: Finish | None) -> Output:
        """Report tokens of a request."""
        logprobs: tuple[TokenLogprob, ...] = ()
        if request.logprobs:
            logprobs = tuple(request.logprobs[: len(tokens)])
            del request.logprobs[: len(tokens)]
        text: str | None = None
        offsets: tuple[int, ...] = ()
        if request.text is not None:
            text = request.text.take()
            if logprobs:
                offsets = request.text.offsets(request.reported, request.reported + len(tokens))
        request.reported += len(tokens)
        size = len(request.prompt)
        return tuple.__new__(  # as `Output(...)`, in half the time
            Output,
            (
                request.id,
                tokens,
                finish,
                size,
                request.cached_tokens,
                request.total - size,
                request.retractions,
                request.spans,
                logprobs,
                text,
                offsets,
            ),
        )

    def close_span(self, request: Request) -> None:
        """Note which weights made the output tokens since the last note."""
        spans, end = request.spans, request.total - len(request.prompt)
        if not spans:
            if end:
                request.spans = (VersionSpan(self.weight_version, 0, end),)
            return
        version, start, known = spans[-1]
        if end <= known:
            return
        if version == self.weight_version:
            request.spans = (*spans[:-1], VersionSpan(version, start, end))
        else:
            request.spans = (*spans, VersionSpan(self.weight_version, known, end))

    def weights_changed(self, version: str) -> None:
        """Weights have changed, and have a new name; what requests hold now is no longer shared with others."""
        self.name_weights(version)
        for request in self.requests.values():
            request.private = bool(request.row)
        self.weights_epoch += 1

    def name_weights(self, version: str) -> None:
        """Give the weights another name; output tokens up to here were made under the old one."""
        for request in self.requests.values():
            if request.column >= 0:
                self.running.settle(request)
            self.close_span(request)
        self.weight_version = version


def _end_text(request: Request, finish: Finish) -> Finish:
    """End a request's text. What is found only now, as nothing comes any more, has stopped it."""
    if request.text is None:
        return finish
    stop = request.text.end(searched=finish.kind in (FinishKind.STOP, FinishKind.LENGTH))
    if stop is None or finish.kind is not FinishKind.LENGTH:
        return finish
    return Finish(FinishKind.STOP, stop)
