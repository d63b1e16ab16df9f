"""The scheduler: one step takes in messages, answers what is pending, and runs one forward pass.

Single-threaded: one thread calls `Scheduler.step`. Other threads may call `Scheduler.post`, which only queues.
"""

from __future__ import annotations

import logging
import threading
from collections import deque

from devicekit.clock import Clock, SystemClock
from devicekit.contract.errors import DeviceError
from devicekit.contract.records import ErrorKind
from devicekit.contract.text import shown
from devicekit.coordination import Coordinator, SingleRank
from devicekit.device import Device
from devicekit.memory.pages import PageAllocator
from devicekit.memory.rows import RequestTable
from devicekit.oom import OutOfMemoryRecovery, describe
from devicekit.release import ReleasePoint, ReleasePoints
from devicekit.scheduling.audit import PoolAudit, PoolsUnbalanced
from devicekit.scheduling.batch import ForwardBatch, ModelLimits, Runner, StepOutput
from devicekit.scheduling.batch_building import BatchBuilder
from devicekit.scheduling.checking import RequestCheck
from devicekit.scheduling.deadlines import Deadlines
from devicekit.scheduling.errors import InvalidRequest, PassFailed
from devicekit.scheduling.gate import AdmissionGate
from devicekit.scheduling.kv_cache import KVCacheManager, build_kv_cache
from devicekit.scheduling.limits import SchedulerLimits
from devicekit.scheduling.messages import Blocker, Operation, Step
from devicekit.scheduling.pacing import PromptPace
from devicekit.scheduling.participants import Participant, Participants
from devicekit.scheduling.planning import Plan, Planner
from devicekit.scheduling.request import (
    Finish,
    FinishKind,
    Request,
    SamplingParams,
    default_seed,
)
from devicekit.scheduling.requests import Requests
from devicekit.scheduling.reservation import NewTokenRatio
from devicekit.scheduling.results import ResultProcessor
from devicekit.scheduling.retraction import Retraction
from devicekit.scheduling.running import RunningBatch
from devicekit.scheduling.state import SchedulerState
from devicekit.scheduling.stopping import StopConditions
from devicekit.scheduling.verbs.control import Control
from devicekit.scheduling.verbs.pause import continue_if_due
from devicekit.scheduling.waiting import WaitingQueue
from devicekit.text import GrammarCompiler, GrammarRefused
from devicekit.text.vocabulary import Decodes, Vocabulary

__all__ = ["Scheduler", "SchedulerLimits", "Step"]

_BLOCK = 64
_log = logging.getLogger(__name__)


class Scheduler:
    """Continuous batching over one runner.

    Args:
        runner: what turns a batch into tokens.
        device: where it runs; asked what an error means, and to empty its cache at release points.
        limits: sizes.
        releases: release points; default: as the environment sets them, on the scheduler's clock.
        detokenizer: a `Vocabulary`, or whatever decodes; needed by requests with stop strings.
        states: state slots, for a runner whose model has recurrent layers. Snapshots are in slots behind them.
        grammars: needed by requests whose output follows a grammar.
        coordinator: what this rank has to agree on with others; default: it is the only one.
    """

    def __init__(
        self,
        runner: Runner,
        device: Device,
        limits: SchedulerLimits,
        *,
        clock: Clock | None = None,
        releases: ReleasePoints | None = None,
        detokenizer: Vocabulary | Decodes | None = None,
        states: PageAllocator | None = None,
        grammars: GrammarCompiler | None = None,
        coordinator: Coordinator | None = None,
    ) -> None:
        coordinator = coordinator or SingleRank()
        clock = clock or SystemClock()
        model = runner.limits
        self.limits = limits
        self._device = device
        self._switches = device.switches
        self._checked = limits.checked
        pool_tokens = limits.num_pages * limits.page_size
        longest = min(model.max_positions, pool_tokens)
        # The last token needs no KV of its own, hence the one extra.
        self._longest_output = min(model.max_positions, pool_tokens + 1)
        self.grammars = grammars
        check = RequestCheck(model, pool_tokens, detokenizer is not None, has_grammars=grammars is not None)
        self.check, self._require = check.check, check.require
        self._stops = StopConditions(model, detokenizer)
        table = RequestTable(
            limits.max_running, _row_width(longest, limits.page_size), longest + 1, checked=limits.checked
        )
        kv = build_kv_cache(table, limits, model, states)
        deadlines = Deadlines()
        requests = _requests(kv, deadlines, limits, model, clock, self._stops.vocabulary)
        self.state = SchedulerState(
            runner=runner,
            kv=kv,
            requests=requests,
            gate=AdmissionGate(),
            deadlines=deadlines,
            participants=Participants(),
            releases=releases or ReleasePoints.configured(device, clock=clock, coordinator=coordinator),
            clock=clock,
            coordinator=coordinator,
        )
        self._ratio = NewTokenRatio(limits.conservativeness)
        pace = None if limits.max_slowdown is None else PromptPace(limits.max_slowdown)
        self._planner = Planner(self.state, self._ratio, limits.max_batch_tokens, pace)
        self._builder = BatchBuilder(self.state, limits.max_running, limits.max_batch_tokens)
        self._retraction = Retraction(self.state, self._ratio)
        self._recovery = OutOfMemoryRecovery(device, self.state.releases, coordinator=coordinator)
        self._results = ResultProcessor(requests, table.tokens, self._stops, limits.invalid_logits)
        self._inbox: deque[Request | Operation] = deque()
        self._woken = threading.Event()
        self._arrivals = 0
        self._last_params: SamplingParams | None = None
        self._plain = False  # whether those are
        self.control = Control(self.state)

    # -- From any thread --------------------------------------------------------------------------------------

    def post(self, message: Request | Operation) -> None:
        """Queue a request or an operation for the next step. Safe from any thread."""
        self._inbox.append(message)
        if not self._woken.is_set():  # if it is being cleared right now, the inbox is looked at after that
            self._woken.set()

    def wait(self, seconds: float) -> bool:
        """Block until something is posted, or ``seconds`` have passed. Returns whether something was."""
        posted = self._woken.wait(seconds)
        self._woken.clear()
        return posted or bool(self._inbox)

    def wake(self) -> None:
        """End a `wait` that is going on, or the next one."""
        self._woken.set()

    # -- From the scheduler's thread --------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Take in a request at once.

        Raises:
            InvalidRequest: it can never run, or its id is in use. Nothing was allocated for it.
        """
        state, params = self.state, request.params
        if request.id in state.requests:
            raise InvalidRequest(f"A request {shown(request.id)} is already in flight.")
        self._require(request)
        if why := state.coordinator.lost or state.gate.failure:
            raise InvalidRequest(f"Request {shown(request.id)} cannot run: {why}")
        if params.grammar is not None and self.grammars is not None:
            try:
                request.matcher = self.grammars.matcher(params.grammar)
            except GrammarRefused as error:
                raise InvalidRequest(f"Request {shown(request.id)} cannot run: {error}") from error
        self._arrivals += 1
        request.arrival = self._arrivals
        request.max_total_tokens = min(request.total + params.max_new_tokens, self._longest_output)
        if params is not self._last_params:  # many requests in a row have the same
            self._last_params, self._plain = params, self._is_plain(params)
        if not (self._plain and request.timeout is None and not request.stream):
            self._list(request)
        deadline = None if request.timeout is None else state.clock.now() + request.timeout
        state.requests.add(request, deadline)

    @staticmethod
    def _is_plain(params: SamplingParams) -> bool:
        """Whether a request with these parameters costs nothing in a step beyond its place in the batch."""
        return not (
            params.temperature > 0
            or params.logprobs is not None
            or StopConditions.is_special(params)
            or params.adjusts
        )

    def _list(self, request: Request) -> None:
        """Prepare a request that costs something in every step."""
        params = request.params
        if params.temperature > 0:
            if params.seed is not None:
                request.seed = params.seed
            elif request.seed is None:
                request.seed = default_seed(request.id)
        if StopConditions.is_special(params):
            self._stops.begin(request)
        request.needs_every_step = True

    def step(self) -> Step:
        """Take in messages, retire finished copies, answer what is pending, then plan, run and process a pass.

        Everything before the plan happens while paused as well. Never raises for a request's or an operator's
        mistake.
        """
        if not self._switches:
            return self._step()
        current = self._device.current()  # the caller's thread may be on another
        try:
            current.__enter__()
        except Exception:  # a pass will meet with it and say so to those whom it concerns
            _log.exception("the device could not be made the thread's current one")
            return self._step()
        try:
            return self._step()
        finally:
            try:
                current.__exit__(None, None, None)
            except Exception:
                _log.exception("the thread's former device could not be made its current one again")

    def _step(self) -> Step:
        state, requests = self.state, self.state.requests
        if self._inbox:
            self._take_in()
        state.participants.retire()
        if state.deadlines:
            self._expire()
        if state.gate.continue_at is not None:
            continue_if_due(state)
        self.control.answer()
        if state.gate.may_run:
            computed = self._forward()
        else:
            computed = 0
            self._planner.rest()
        if not (requests.running.requests or requests):
            self._idle()
        self.control.answer()
        if self._checked:
            self._check()
        return Step(requests.take_outputs(), self.control.take_replies(), computed, requests.take_columns())

    def close(self) -> Step:
        """Take no further step. Nothing to do here; `LockstepScheduler` tells the other ranks."""
        return Step((), ())

    def blockers(self) -> tuple[Blocker, ...]:
        """Every reason for not being idle; idle is having none."""
        return self.state.blockers()

    def register(self, participant: Participant) -> None:
        """Let an engine part take part in flushes, and block them while it has work."""
        self.state.participants.register(participant)

    def audit(self) -> PoolAudit:
        """Where every page, row and state slot is. The first imbalance is noted in `KVCacheManager.unbalanced`."""
        requests = self.state.requests
        for request in requests.running.requests:
            requests.running.settle(request)
        return self.state.kv.audit([*requests.running.requests, *requests.prefilling])

    # -- The phases of a step ---------------------------------------------------------------------------------

    def _take_in(self) -> None:
        while self._inbox:
            message = self._inbox.popleft()
            if isinstance(message, Operation):
                self.control.submit(message)
                continue
            try:
                self.add(message)
            except InvalidRequest as error:
                self.state.requests.refuse(message, str(error))

    def _expire(self) -> None:
        for request in self.state.deadlines.expired(self.state.clock.now()):
            message = f"The request did not finish within its {request.timeout:g} s."
            self.state.requests.finish(request, Finish(FinishKind.ABORT, message=message))

    def _forward(self) -> int:
        requests = self.state.requests
        self.state.kv.before_pass(requests.running, requests.prefilling)
        if not self._retraction.make_room_for_step():
            return 0
        plan = self._planner.plan()
        if not (plan.decoding or plan.chunks):
            return 0
        batch = self._builder.build(plan)
        result = self._run(batch, plan)
        if result is None:
            return 0
        self._results.process(plan, result)
        self._ratio.decay()
        self._planner.succeeded()
        return len(batch.input_ids)

    def _run(self, batch: ForwardBatch, plan: Plan) -> StepOutput | None:
        """One forward pass, tried twice if it runs out of memory. ``None``: it failed."""
        try:
            return self._recovery.run("the forward pass", self.state.runner.step, batch)
        except Exception as error:
            kind = error.kind if isinstance(error, PassFailed) else self._device.classify_error(error)
            if kind is ErrorKind.OUT_OF_MEMORY:
                most = self._planner.halve(len(batch.input_ids))
                if self._retraction.shed_load(most):
                    return None
            self._fail(plan, error, kind)
            return None

    def _idle(self) -> None:
        self._ratio.reset()
        self._planner.rest()
        self.state.kv.tidy()
        if self.state.kv.unbalanced is None and not self.state.kv.at_rest:
            self.audit()
        if self.state.paused or not self.state.healthy or self.state.blockers():
            return
        try:
            self.state.releases.reach(ReleasePoint.IDLE)
        except Exception as error:  # it failed no request
            if not isinstance(error, DeviceError):  # the ledger has those
                _log.exception("emptying the cache of an idle engine failed")
            if self._device.classify_error(error) is ErrorKind.DEVICE_LOST:
                self.state.gate.fail(f"The device is lost: {describe(error)}")

    def _check(self) -> None:
        found = self.audit()
        if not found.balanced:
            raise PoolsUnbalanced(found)

    def _fail(self, plan: Plan, error: Exception, kind: ErrorKind | None) -> None:
        """End the requests of a pass that failed; if the device is lost, end all."""
        message = f"The forward pass failed: {describe(error)}"
        if (lost := self.state.coordinator.lost) is not None:
            self.state.gate.fail(str(lost))  # whatever it looks like from here
        if kind is ErrorKind.DEVICE_LOST:
            self.state.gate.fail(f"The device is lost: {describe(error)}")
            self.state.fail_all(message)
            return
        requests = self.state.requests
        for request in [*requests.running.requests, *(request for request, _, _ in plan.chunks)]:
            requests.finish(request, Finish(FinishKind.ERROR, message=message))
        if kind is not ErrorKind.OUT_OF_MEMORY and self.state.coordinator.lost is None:
            self.state.releases.after_failed_request()


def _requests(
    kv: KVCacheManager,
    deadlines: Deadlines,
    limits: SchedulerLimits,
    model: ModelLimits,
    clock: Clock,
    vocabulary: Vocabulary | None,
) -> Requests:
    """The requests, with the batch and the queue between which they move."""
    running = RunningBatch(kv.table, kv.decode_pages, limits.page_size, limits.max_batch_tokens)
    waiting = WaitingQueue(
        limits.policy,
        lambda request: kv.cached_tokens(request, requests.namespace(request)),
        lambda: (kv.cache_version, requests.weights_epoch),
    )
    requests = Requests(kv, running, waiting, deadlines, model, clock, vocabulary)
    return requests


def _row_width(longest: int, page_size: int) -> int:
    """Pages in a row of the request table; wide rows in whole blocks, which is what its mirrors upload."""
    width = -(-longest // page_size)
    return width if width < _BLOCK else -(-width // _BLOCK) * _BLOCK
