"""One scheduler per rank, all in lockstep: rank 0 takes requests and operations in, and every rank serves them.

A scheduler does the same whenever it is given the same messages at the same time. So rank 0 hands out both at the
beginning of each step, and whatever else may differ between ranks is agreed before anyone acts on it: how a
forward pass ended and which tokens it drew, which copies have finished, whether new weights fit, what an operation
is answered. For that the scheduler asks its coordinator, the `RankGroup`. What stands here is how messages reach
every rank, following, and the end. Ranks that lose each other end their requests, answer their operations
with a failure that says whom they lost, and serve no more.
"""

from __future__ import annotations

import pickle
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from devicekit.contract.text import shown
from devicekit.device import Device
from devicekit.memory.pages import PageAllocator
from devicekit.release import ReleasePoint, ReleasePoints, ReleasePolicy
from devicekit.renamed import renamed
from devicekit.scheduling.audit import PoolAudit
from devicekit.scheduling.batch import Runner
from devicekit.scheduling.errors import InvalidOperation, InvalidRequest, RankLost
from devicekit.scheduling.limits import SchedulerLimits
from devicekit.scheduling.messages import Blocker, Operation, Step
from devicekit.scheduling.participants import Participant
from devicekit.scheduling.ranks.group import RankGroup
from devicekit.scheduling.ranks.runner import RankedRunner
from devicekit.scheduling.ranks.table import Question
from devicekit.scheduling.request import Request
from devicekit.scheduling.scheduler import Scheduler
from devicekit.scheduling.state import SchedulerState
from devicekit.scheduling.verbs.control import Control
from devicekit.text import GrammarCompiler
from devicekit.text.vocabulary import Decodes, Vocabulary

_ASKING, _CLOSING = 1, 2  # what a rank says of the end when a step begins


class LockstepScheduler:
    """One rank's scheduler among others. Every rank constructs one, with the same sizes.

    Rank 0 posts, steps and waits as with a `Scheduler` of its own; the other ranks call `follow`. Steps are taken
    by all ranks together, and their outputs and replies are the same everywhere, but for measurements.

    Args:
        ranks: those that serve this model.
        policies: of the release points, which decide alike on every rank; the figures are rank 0's.

    Raises:
        ConfigurationError: the ranks differ in their sizes, models' limits or policies.
        RankLost: a rank did not come.
    """

    def __init__(
        self,
        runner: Runner,
        device: Device,
        limits: SchedulerLimits,
        ranks: RankGroup,
        *,
        policies: Mapping[ReleasePoint, ReleasePolicy] | None = None,
        detokenizer: Vocabulary | Decodes | None = None,
        states: PageAllocator | None = None,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        releases = ReleasePoints.configured(device, policies, clock=ranks.clock, coordinator=ranks)
        eos = sorted(runner.limits.eos_token_ids)  # a set prints in another order in every process
        ranks.require_same("sizes", f"{limits}, {states and states.num_pages} states")
        ranks.require_same("model", f"{replace(runner.limits, eos_token_ids=frozenset())}, eos {eos}")
        ranks.require_same("release policies", str({p.value: str(q) for p, q in releases.policies.items()}))
        ranks.widen(limits.max_running)
        self.ranks = ranks
        self.scheduler = Scheduler(
            RankedRunner(runner, device.classify_error, ranks),
            device,
            limits,
            clock=ranks.clock,
            releases=releases,
            detokenizer=detokenizer,
            states=states,
            grammars=grammars,
            coordinator=ranks,
        )
        self._outbox: deque[tuple[Request | Operation, bytes]] = deque()
        self._closing = False
        self._closed = False
        self._on_asked_to_stop: Callable[[tuple[int, ...]], None] | None = None
        self._asking = False
        self._told: tuple[int, ...] = ()

    @property
    def state(self) -> SchedulerState:
        """Of this rank's scheduler; the same on every rank."""
        return self.scheduler.state

    @property
    def control(self) -> Control:
        """The control operations of this rank's scheduler."""
        return self.scheduler.control

    @property
    def limits(self) -> SchedulerLimits:
        """The sizes, the same on every rank."""
        return self.scheduler.limits

    @property
    def closed(self) -> bool:
        """Whether the last step was taken."""
        return self._closed

    # -- On rank 0 --------------------------------------------------------------------------------------------

    def post(self, message: Request | Operation) -> None:
        """Queue a request or an operation for the next step of every rank. Safe from any thread.

        Raises:
            InvalidOperation: this is not rank 0, the ranks were told to stop, or the message cannot be sent to
                other processes.
        """
        if self.ranks.rank:
            raise InvalidOperation(
                f"This is rank {self.ranks.rank}: requests and operations are posted on rank 0."
            )
        if self._closing:
            raise InvalidOperation("The ranks were told to stop.")
        try:
            encoded = pickle.dumps(message)
        except Exception as error:
            raise InvalidOperation(
                f"{type(message).__name__} {message.id} cannot be sent to the other ranks: {error}"
            ) from error
        self._outbox.append((message, encoded))
        self.scheduler.wake()

    def wait(self, seconds: float) -> bool:
        """Block until something is posted, or ``seconds`` have passed; rank 0 no longer than a heartbeat, and
        the others not at all: they sleep in `step` until rank 0 takes it."""
        if self.ranks.rank and self.ranks.lost is None:
            return False
        return self.scheduler.wait(min(seconds, self.ranks.heartbeat)) or bool(self._outbox)

    def close(self) -> Step:
        """Tell the ranks to stop, and end what is in flight: the last step. On other ranks it does nothing."""
        if self.ranks.rank or self._closed:
            return self.scheduler.close()
        self._closing = True
        return self.step()

    def on_asked_to_stop(self, tell: Callable[[tuple[int, ...]], None]) -> None:
        """Call ``tell`` on rank 0, in the thread that steps, with the ranks that have asked to end."""
        self._on_asked_to_stop = tell

    # -- On the others ----------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Take every step that rank 0 takes, until it stops.

        Raises:
            RankLost: a rank was lost. The requests of this engine have ended.
        """
        while not self._closed:
            self.step()
            if not self._closed:
                self.ranks.require_all()

    def ask_to_stop(self) -> None:
        """Have rank 0 hear in the next step that this rank is to end. Safe from any thread."""
        self._asking = True

    # -- On all -----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """As `Scheduler.wake`."""
        self.scheduler.wake()

    def check(self, request: Request) -> None:
        """As `Scheduler.check`."""
        self.scheduler.check(request)

    def blockers(self) -> tuple[Blocker, ...]:
        """As `Scheduler.blockers`."""
        return self.scheduler.blockers()

    def register(self, participant: Participant) -> None:
        """As `Scheduler.register`; on every rank alike."""
        self.scheduler.register(participant)

    def audit(self) -> PoolAudit:
        """As `Scheduler.audit`, of this rank."""
        return self.scheduler.audit()

    def add(self, request: Request) -> None:
        """Check a request and `post` it.

        Raises:
            InvalidRequest: it can never run, its id is in use, or a rank is lost.
            InvalidOperation: as `post`.
        """
        if (lost := self.ranks.lost) is not None:
            raise InvalidRequest(f"Request {shown(request.id)} cannot run: {lost}")
        self.check(request)
        if request.id in self.state.requests or any(one.id == request.id for one, _ in tuple(self._outbox)):
            raise InvalidRequest(f"A request {shown(request.id)} is already in flight.")
        self.post(request)

    def step(self) -> Step:
        """One step, together with all other ranks. Does not return before each has begun it.

        Never raises because a rank is lost: `ranks.lost` says so, and what was asked of the engine is answered.
        """
        try:
            with self.ranks.step():
                self._begin_together()
                self._end_if_lost()
                done = self.scheduler.step()
                self._end_if_lost()
                return done
        except BaseException as error:
            # This rank cannot say that its state is still the same as the others'.
            self.ranks.leave(f"{type(error).__name__}: {error}")
            raise

    def _end_if_lost(self) -> None:
        if self.ranks.lost is not None:
            self.state.fail_all(str(self.ranks.lost))

    def _begin_together(self) -> None:
        """Take over rank 0's time and messages."""
        own, content = [], b""
        while self._outbox:
            own.append(self._outbox.popleft())
        if own:
            content = pickle.dumps([encoded for _, encoded in own])
        self._take_in(message for message, _ in own)
        if self.ranks.lost is not None:
            return
        try:
            healthy = self.state.healthy
            wish = _CLOSING if self._closing else _ASKING if self._asking else 0
            table = self.ranks.ask(Question.STEP, len(content), wish, healthy, digest=self._digest())
            size, closing = int(table[0, 0]), table[0, 1] == _CLOSING
            sick = np.flatnonzero(table[:, 2] == 0).tolist()
            asking = tuple(np.flatnonzero(table[:, 1] == _ASKING).tolist())
            if size:
                received = self.ranks.hand_out(content or None, size)
                if self.ranks.rank:
                    self._take_in(pickle.loads(one) for one in pickle.loads(received))
        except RankLost:
            return  # what it means is the caller's business, and what came in is answered there
        if sick and healthy:
            self.state.fail_all(f"The device of rank {', '.join(map(str, sick))} is lost.")
        if closing:
            self._closed = True
            self.ranks.close()
        elif asking and not self.ranks.rank:
            told, self._told = self._told, asking
            if told != asking and self._on_asked_to_stop is not None:
                self._on_asked_to_stop(asking)

    def _take_in(self, messages: Iterable[Request | Operation]) -> None:
        for message in messages:
            self.scheduler.post(message)

    def _digest(self) -> int:
        """Of everything that would differ if a rank had gone another way."""
        state, requests, gate = self.state, self.state.requests, self.state.gate
        counts = [
            gate.epoch,
            requests.weights_epoch,
            gate.paused,
            len(requests),
            len(requests.running),
            len(requests.prefilling),
            len(gate.holds),
            len(tuple(gate.closed_by)),
            state.kv.pages.available,
            state.kv.table.available,
            len(self.control.pending),
        ]
        counts += [state.participants.pending(part) for part in state.participants]
        return zlib.crc32(np.array(counts, np.int64).tobytes())


__getattr__ = renamed(__name__, {"RankedScheduler": f"{__name__}:LockstepScheduler"})
