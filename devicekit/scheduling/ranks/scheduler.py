"""One scheduler per rank, all in lockstep: rank 0 takes requests and operations in, and every rank serves them.

A scheduler does the same whenever it is given the same messages at the same time. So rank 0 hands out both at the
beginning of each step, and whatever else may differ between ranks is agreed before anyone acts on it: how a
forward pass ended and which tokens it drew, which copies have finished, whether new weights fit, what an operation
is answered. Ranks that lose each other end their requests, answer their operations with a failure that says whom
they lost, and serve no more.
"""

from __future__ import annotations

import pickle
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from devicekit.contract.records import ErrorKind
from devicekit.device import Device
from devicekit.memory.pages import PageAllocator
from devicekit.release import ReleasePoint, ReleasePoints, ReleasePolicy
from devicekit.scheduling.batch import Runner
from devicekit.scheduling.errors import InvalidOperation, InvalidRequest, RankLost
from devicekit.scheduling.messages import Operation
from devicekit.scheduling.planning import Plan
from devicekit.scheduling.ranks.control import RankedControl
from devicekit.scheduling.ranks.group import Question, RankGroup
from devicekit.scheduling.ranks.runner import PassFailed, RankedRecovery, RankedRunner
from devicekit.scheduling.request import Request
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits, Step
from devicekit.text.vocabulary import Decodes, Vocabulary

_ASKING, _CLOSING = 1, 2  # what a rank says of the end when a step begins


class RankedScheduler(Scheduler):
    """One rank's scheduler. Every rank constructs one, with the same sizes.

    Rank 0 posts, steps and waits as with a `Scheduler` of its own; the other ranks call `follow`. Steps are taken
    by all ranks together, and their outputs and replies are the same everywhere, but for measurements.

    Args:
        ranks: those that serve this model.
        policies: of the release points, which decide alike on every rank; the figures are rank 0's.

    ``on_asked_to_stop`` is called on rank 0, in the thread that steps, with the ranks that have asked to end.

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
    ) -> None:
        releases = ReleasePoints.configured(device, policies, clock=ranks.clock)
        releases.agreed = ranks.first
        eos = sorted(runner.limits.eos_token_ids)  # a set prints in another order in every process
        ranks.require_same("sizes", f"{limits}, {states and states.num_pages} states")
        ranks.require_same("model", f"{replace(runner.limits, eos_token_ids=frozenset())}, eos {eos}")
        ranks.require_same("release policies", str({p.value: str(q) for p, q in releases.policies.items()}))
        ranks.widen(limits.max_running)
        ranked = RankedRunner(runner, device.classify_error, ranks)
        super().__init__(
            ranked,
            device,
            limits,
            clock=ranks.clock,
            releases=releases,
            detokenizer=detokenizer,
            states=states,
        )
        self.ranks = ranks
        self.state.ranks = ranks
        self.control = RankedControl(self.state, ranks)
        self._recovery = RankedRecovery(device, releases, ranks)
        self._outbox: deque[tuple[Request | Operation, bytes]] = deque()
        self._closing = False
        self.closed = False
        self.on_asked_to_stop: Callable[[tuple[int, ...]], None] = lambda ranks: None
        self._asking = False
        self._told: tuple[int, ...] = ()

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
        self._woken.set()

    def wait(self, seconds: float) -> bool:
        """Block until something is posted, or ``seconds`` have passed; rank 0 no longer than a heartbeat, and
        the others not at all: they sleep in `step` until rank 0 takes it."""
        if self.ranks.rank and self.ranks.lost is None:
            return False
        return super().wait(min(seconds, self.ranks.heartbeat)) or bool(self._outbox)

    def close(self) -> Step:
        """Tell the ranks to stop, and end what is in flight: the last step. On other ranks it does nothing."""
        if self.ranks.rank or self.closed:
            return super().close()
        self._closing = True
        return self.step()

    # -- On the others ----------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Take every step that rank 0 takes, until it stops.

        Raises:
            RankLost: a rank was lost. The requests of this engine have ended.
        """
        while not self.closed:
            self.step()
            if not self.closed:
                self.ranks.require_all()

    def ask_to_stop(self) -> None:
        """Have rank 0 hear in the next step that this rank is to end. Safe from any thread."""
        self._asking = True

    # -- On all -----------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Take in a request; outside of a step on rank 0, check it and `post` it.

        Raises:
            InvalidRequest: it can never run, its id is in use, or a rank is lost.
            InvalidOperation: as `post`.
        """
        if (lost := self.ranks.lost) is not None:
            raise InvalidRequest(f"Request {request.id!r} cannot run: {lost}")
        if self.ranks.in_step:
            super().add(request)
            return
        self.check(request)
        if request.id in self.state.requests or any(one.id == request.id for one, _ in tuple(self._outbox)):
            raise InvalidRequest(f"A request {request.id!r} is already in flight.")
        self.post(request)

    def step(self) -> Step:
        """One step, together with all other ranks. Does not return before each has begun it.

        Never raises because a rank is lost: `ranks.lost` says so, and what was asked of the engine is answered.
        """
        try:
            with self.ranks.step():
                self._begin_together()
                if self.ranks.lost is not None:
                    self.state.give_up(str(self.ranks.lost))
                return super().step()
        except BaseException as error:
            # This rank cannot say that its state is still the same as the others'.
            self.ranks.leave(f"{type(error).__name__}: {error}")
            raise

    def _begin_together(self) -> None:
        """Take over rank 0's time and messages."""
        own, content = [], b""
        while self._outbox:
            own.append(self._outbox.popleft())
        if own:
            content = pickle.dumps([encoded for _, encoded in own])
        self._inbox.extend(message for message, _ in own)
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
                    self._inbox.extend(pickle.loads(one) for one in pickle.loads(received))
        except RankLost:
            return  # what it means is the caller's business, and what came in is answered there
        if sick and healthy:
            self.state.give_up(f"The device of rank {', '.join(map(str, sick))} is lost.")
        if closing:
            self.closed = True
            self.ranks.close()
        elif asking and not self.ranks.rank:
            told, self._told = self._told, asking
            if told != asking:
                self.on_asked_to_stop(asking)

    def _digest(self) -> int:
        """Of everything that would differ if a rank had gone another way."""
        state = self.state
        counts = [
            state.epoch,
            state.weights_epoch,
            state.paused,
            len(state.requests),
            len(state.running),
            len(state.prefilling),
            len(state.holds),
            len(state.closed_by),
            state.kv.pages.available,
            state.kv.table.available,
            len(self.control.pending),
        ]
        counts += [state.pending(part) for part in state.participants]
        return zlib.crc32(np.array(counts, np.int64).tobytes())

    def _fail(self, plan: Plan, error: Exception, kind: ErrorKind | None) -> None:
        if (lost := self.ranks.lost) is not None:
            self.state.fail(str(lost))  # whatever it looks like from here
        super()._fail(plan, error, error.kind if isinstance(error, PassFailed) else kind)
