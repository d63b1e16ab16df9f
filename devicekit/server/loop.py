"""The engine's own thread, and the bridge between it and coroutines.

The thread steps the scheduler while there is work and sleeps on its inbox otherwise, also while paused. Outputs
and replies are delivered by id: each has one receiver, or none if nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from devicekit.contract.text import shown
from devicekit.scheduling.errors import InvalidRequest
from devicekit.scheduling.interface import EngineScheduler
from devicekit.scheduling.messages import Abort, Operation, Reply, Step, Withdraw
from devicekit.scheduling.request import Request
from devicekit.scheduling.resting import idle_seconds
from devicekit.scheduling.token_columns import TokenColumns
from devicekit.server.errors import EngineStopped
from devicekit.server.outputs import Outputs
from devicekit.server.snapshot import Observation, Snapshot

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

FORKED = "This process was forked from the one that runs the engine, and has none of its own."
"""Why nothing runs in a copy of the process."""

_PATIENCE = 10.0  # seconds that the thread gets to end
# How long the thread sleeps when a step had nothing to compute. Whatever is posted wakes it at once.
_TICK = 1.0  # nothing is going on: idle work and a fresh snapshot
_RETRY = 0.001  # requests could run, and did not: memory was short in this step


@dataclass(slots=True)
class PendingOperation:
    """An operation without an answer yet."""

    operation: Operation
    since: float  # time.monotonic()
    waiter: asyncio.Future[Reply] | None  # None: nobody waits for it any more


class EngineLoop:
    """Runs one scheduler. Everything but the thread itself belongs to one asyncio event loop.

    Args:
        on_step: called in the event loop with what came out of a step.
        on_reply: called in the event loop with every operation and its answer.
        on_tick: called in the engine's thread after each step.
    """

    def __init__(
        self,
        scheduler: EngineScheduler,
        *,
        on_step: Callable[[Step], None] = lambda step: None,
        on_reply: Callable[[Operation, Reply], None] = lambda operation, reply: None,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._scheduler = scheduler
        self._on_step, self._on_reply, self._on_tick = on_step, on_reply, on_tick
        self._observation = Observation(scheduler)
        self.failure: str | None = None  # why nothing runs any more
        self._outputs: dict[str, Outputs | None] = {}  # by request id, until it ends; None: abandoned
        self._since: dict[str, float] = {}  # when each of those came; in that order
        self._operations: dict[str, PendingOperation] = {}
        self._looks: deque[Callable[[], None]] = deque()  # taken by the thread
        self._looking: set[asyncio.Future[Any]] = set()  # who waits for them
        self._step_began: float | None = None
        self._heard = time.monotonic()  # when the thread last showed that it goes on
        self._process = os.getpid()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="devicekit-engine", daemon=True)
        self._events: asyncio.AbstractEventLoop | None = None

    # -- From the event loop ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread. Call it from the event loop that will use it."""
        self._events = asyncio.get_running_loop()
        self._process, self._heard = os.getpid(), time.monotonic()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after the step it is in. Everyone who still waits gets EngineStopped.

        A thread that does not end in time is left to itself, and is `alive` still.
        """
        stopping = self._stopping.is_set()
        self._stopping.set()
        self._scheduler.wake()
        if self._events is not None and not (stopping and self.failure):
            await self._events.run_in_executor(None, self._thread.join, _PATIENCE)
        self._fail("The server is stopping.")

    @property
    def snapshot(self) -> Snapshot:
        """The scheduler after its last step. Made when it is asked for; from any thread."""
        return self._observation.snapshot

    @property
    def alive(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the one that runs the thread, and has no such thread."""
        return os.getpid() != self._process

    @property
    def silent_seconds(self) -> float:
        """Seconds since the thread last gave a sign of life: up to one while there is nothing to do."""
        return time.monotonic() - self._heard

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._outputs)

    def oldest(self, count: int) -> list[tuple[str, float]]:
        """The requests in flight that came first: id, and seconds since then."""
        now = time.monotonic()
        return [(identity, now - since) for identity, since in itertools.islice(self._since.items(), count)]

    @property
    def pending(self) -> list[PendingOperation]:
        """Operations that have no answer yet."""
        return list(self._operations.values())

    @property
    def step_seconds(self) -> float:
        """How long the present step has been running; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def submit(self, requests: Sequence[Request]) -> Outputs:
        """Queue requests, all or none of them.

        Raises:
            InvalidRequest: one of them can never run, or its id is in use.
            EngineStopped: nothing runs any more.
        """
        self._require_running()
        if failure := self._observation.failure:
            raise EngineStopped(failure)
        ids: set[str] = set()
        for request in requests:
            if request.id in self._outputs or request.id in ids:
                raise InvalidRequest(f"A request {shown(request.id)} is already in flight.")
            self._scheduler.check(request)
            ids.add(request.id)
        outputs = Outputs(ids, self._abandon)
        for request in requests:
            self._scheduler.post(request)
            self._outputs[request.id] = outputs
            self._since[request.id] = time.monotonic()
        return outputs

    async def perform(self, operation: Operation, gone: asyncio.Future[None] | None = None) -> Reply:
        """Have an operation carried out, and wait for its answer.

        A caller that is cancelled, or ``gone``, withdraws it: if it still waits itself, it changes nothing.
        Otherwise it comes to its end.

        Raises:
            EngineStopped: nothing runs any more.
        """
        self._require_running()
        waiter: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        pending = PendingOperation(operation, time.monotonic(), waiter)
        self._scheduler.post(operation)
        self._operations[operation.id] = pending
        try:
            if gone is not None:
                await asyncio.wait((waiter, gone), return_when=asyncio.FIRST_COMPLETED)
                if not waiter.done():
                    self._withdraw(operation)
            return await waiter
        except asyncio.CancelledError:
            self._withdraw(operation)
            raise
        finally:
            pending.waiter = None

    def _withdraw(self, operation: Operation) -> None:
        if self.failure is None and operation.id in self._operations:
            self._scheduler.post(Withdraw(f"withdraw {operation.id}", operation.id))

    async def look(self, at: Callable[[EngineScheduler], _T]) -> _T:
        """Let the engine's thread call ``at`` with the scheduler between two steps. It must change nothing.

        Raises:
            EngineStopped: nothing runs any more.
            Exception: what ``at`` raised.
        """
        self._require_running()
        found: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._looking.add(found)
        found.add_done_callback(self._looking.discard)

        def call() -> None:
            try:
                tell = partial(_settle, found, at(self._scheduler))
            except Exception as error:  # it belongs to whoever asked
                tell = partial(_settle_failed, found, error)
            self._tell(tell)

        self._looks.append(call)
        self._scheduler.wake()
        return await found

    def _require_running(self) -> None:
        if self.failure is not None:
            raise EngineStopped(self.failure)
        if self.forked:
            raise EngineStopped(FORKED)

    def _abandon(self, identity: str) -> None:
        # The id stays taken until the request has ended: its last output must not reach a newcomer.
        if identity in self._outputs:
            self._outputs[identity] = None
            self._scheduler.post(Abort(f"abandon {identity}", request_id=identity))

    def _deliver(self, step: Step) -> None:
        try:
            self._route(step)
        except Exception as error:  # nobody may be left waiting for what it lost
            _log.critical("Delivering the results of a step failed.", exc_info=error)
            self._stopping.set()
            self._fail(f"Delivering results failed: {type(error).__name__}: {error}")

    def _route(self, step: Step) -> None:
        if step.columns is not None:
            self._route_columns(step.columns)
        for output in step.told:
            outputs = self._outputs.get(output.id)
            if output.finish is not None:
                self._outputs.pop(output.id, None)
                self._since.pop(output.id, None)
            if outputs is not None:
                outputs.put(output)
        for reply in step.replies:
            pending = self._operations.pop(reply.id, None)
            if pending is None:
                continue
            self._on_reply(pending.operation, reply)
            if pending.waiter is not None and not pending.waiter.done():
                pending.waiter.set_result(reply)
        self._on_step(step)

    def _route_columns(self, columns: TokenColumns) -> None:
        tokens, offsets, made = (
            columns.tokens.tolist(),
            columns.offsets.tolist(),
            columns.output_tokens.tolist(),
        )
        waiting = self._outputs.get
        for at, stream in enumerate(columns.streams):
            outputs = waiting(stream.id)
            if outputs is not None:
                outputs.gain(stream, tokens[offsets[at] : offsets[at + 1]], made[at])

    def _fail(self, reason: str) -> None:
        self.failure = reason = self.failure or reason
        for outputs in {id(one): one for one in self._outputs.values() if one is not None}.values():
            outputs.put(EngineStopped(reason))
        for pending in self._operations.values():
            if pending.waiter is not None and not pending.waiter.done():
                pending.waiter.set_exception(EngineStopped(reason))
        for look in [*self._looking]:
            if not look.done():
                look.set_exception(EngineStopped(reason))
        self._outputs.clear()
        self._since.clear()
        self._operations.clear()

    # -- The thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            # What happens between the steps, and what vendors do without an index, is on this device too.
            with self._scheduler.state.releases.device.current_where_possible():
                self._step_until_stopped()
                self._scheduler.close()
        except BaseException as error:
            _log.critical("The engine's thread died.", exc_info=error)
            self._tell(partial(self._fail, f"The engine's thread died: {type(error).__name__}: {error}"))

    def _step_until_stopped(self) -> None:
        steps = computed = 0
        while not self._stopping.is_set():
            self._step_began = self._heard = time.monotonic()
            step = self._scheduler.step()
            steps += 1
            computed += step.ran
            self._observation.note(steps, computed)
            self._on_tick()
            self._step_began = None
            self._heard = time.monotonic()
            while self._looks:
                self._looks.popleft()()
            if step.told or step.columns is not None or step.replies:
                self._tell(partial(self._deliver, step))
            elif not step.ran:
                self._scheduler.wait(self._rest())

    def _rest(self) -> float:
        """The most seconds to sleep before the next step."""
        seconds = idle_seconds(self._scheduler.state, self._scheduler.control)
        if seconds == 0:
            return _RETRY
        return _TICK if seconds is None else min(seconds, _TICK)

    def _tell(self, call: Callable[[], None]) -> None:
        if self._events is None or self._events.is_closed():
            self._stopping.set()  # nobody is left to serve
            return
        self._events.call_soon_threadsafe(call)


def _settle(future: asyncio.Future[_T], value: _T) -> None:
    if not future.done():
        future.set_result(value)


def _settle_failed(future: asyncio.Future[_T], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
