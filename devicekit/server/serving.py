"""What every endpoint works with: the engine, its loop, and the limits of this server."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from devicekit.engine import Engine
from devicekit.scheduling.messages import Operation, Reply, Step
from devicekit.scheduling.request import Request
from devicekit.server import journal
from devicekit.server.absence import gone
from devicekit.server.bodies import Bodies
from devicekit.server.drains import Drains
from devicekit.server.errors import BadRequest, Overloaded, TooManyRequests, Unavailable
from devicekit.server.history import History
from devicekit.server.inventory import Inventory
from devicekit.server.keys import Keys
from devicekit.server.loop import EngineLoop
from devicekit.server.metrics import Metrics
from devicekit.server.origins import Origins
from devicekit.server.outputs import Outputs
from devicekit.server.paths import AllowedRoots
from devicekit.server.prompts import tokens_of
from devicekit.server.sampling_defaults import sampling_defaults
from devicekit.server.settings import ServerSettings
from devicekit.server.watch import LOOK_EVERY, Watch
from devicekit.text import GrammarRefused

if TYPE_CHECKING:
    from devicekit.server.group import SequenceSpec

_R = TypeVar("_R", bound=Reply)
_T = TypeVar("_T")
_DRAIN_LOOK = 0.05  # seconds
_LOGPROBS = 4_000_000  # in one answer
_COMPILING = 2  # grammars at a time
_LONG = 4096  # characters, or numbers; working on more than that must not hold up everybody else


class Serving:
    """One engine behind one server."""

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.keys = Keys(settings)
        self.origins = Origins(settings.host, settings.allowed_hosts, settings.allowed_origins)
        self.bodies = Bodies(settings.max_body_bytes, max(settings.max_bodies_bytes, settings.max_body_bytes))
        self.history = History(engine.device)
        root = Path(engine.runner.directory.path).resolve()
        self.model_name = settings.served_model_name or root.name
        self.metrics = Metrics(self.model_name, sglang=settings.sglang_metrics)
        self.loop = EngineLoop(
            engine.scheduler,
            on_step=self._on_step,
            on_reply=self._on_reply,
            on_tick=lambda: self.history.sample(lambda: self.loop.snapshot),
        )
        self.drains = Drains(lambda: self.loop.snapshot)
        self.inventory = Inventory(self.loop)
        self.metrics.watch(self.loop, engine.scheduler.state.releases, engine.graphs, engine.config.page_size)
        own = (root,) if root != root.parent else ()  # never the whole file system by default
        self.weights_roots = AllowedRoots(settings.allowed_weights_roots or own)
        self.sampling_defaults = sampling_defaults(engine.runner.directory, settings.sampling_defaults)
        self.started = time.time()
        self.instance = uuid.uuid4().hex  # another after every start
        self.watch = Watch()
        self.lent = 0  # answers under way that hold weights
        self.stopping = ""  # why no requests are taken any more; empty while they are
        self.probe: asyncio.Future[tuple[str, str, int]] | None = None  # of health, while it is under way
        self._ids = itertools.count(1)
        # Of its own: those who wait for a body to be read do not wait for a grammar.
        self._compiling = ThreadPoolExecutor(_COMPILING, "devicekit-grammar")

    async def keep_watch(self) -> None:
        """Compare the clocks every second, until cancelled."""
        while True:
            self.watch.look()
            await asyncio.sleep(LOOK_EVERY)

    async def drain(self, *, hurry: Callable[[], bool]) -> None:
        """Take no more requests, let those in flight end within the set time, and end the engine's thread.

        What has not ended by then is told that the server is stopping.

        Args:
            hurry: whether to wait no longer.
        """
        self.stopping = "The server is stopping."
        deadline = time.monotonic() + self.settings.drain_seconds
        while (self.loop.in_flight or self.loop.pending) and time.monotonic() < deadline:
            # While nothing is generated nothing ends.
            if hurry() or self.loop.failure or self.loop.snapshot.failure or self.loop.snapshot.resting:
                break
            await asyncio.sleep(_DRAIN_LOOK)
        await self.close()

    async def close(self) -> None:
        """End the engine's thread, and those that compile grammars."""
        await self.loop.stop()
        self._compiling.shutdown(wait=False)

    def next_id(self) -> str:
        """An id for an operation."""
        return f"operation {next(self._ids)}"

    @property
    def longest(self) -> int:
        """The most tokens of a prompt and its output together: what the model takes and the KV pool holds."""
        engine = self.engine
        return min(engine.runner.limits.max_positions, engine.plan.num_tokens)

    def priority(self, given: int | None) -> int:
        """The priority of a request.

        Raises:
            BadRequest: it has one, and nobody here would go by it.
        """
        policy = self.engine.config.policy
        if given and policy != "priority":
            raise BadRequest(f"priority: this server admits by {policy}; --policy priority goes by it.")
        return given or 0

    def require_open(self) -> None:
        """Let a request to generate pass unless the server is going, or its engine is being drained.

        Raises:
            Overloaded: it had better be sent to another server.
        """
        if reason := self.stopping or self.drains.reason:
            raise Overloaded(reason)

    def require_weights(self) -> None:
        """Let a request pass that can be served, or that will be when memory is there again.

        Raises:
            Unavailable: it would wait for weights, which nobody may ever write.
        """
        if reason := self.loop.snapshot.no_weights:
            raise Unavailable(f"Nothing can be generated now: {reason}.")

    async def compile(self, sequences: Sequence[SequenceSpec]) -> None:
        """Compile the grammars of sequences, away from the event loop and before the engine's thread sees them.

        Raises:
            BadRequest: one of them is not sound, or cannot be followed here.
        """
        wanted = {one.params.grammar for one in sequences} - {None}
        grammars = self.engine.grammars
        for grammar in wanted:
            if grammars is None or grammar is None:
                raise BadRequest("Structured output needs a tokenizer, and this model has none.")
            try:
                await asyncio.get_running_loop().run_in_executor(self._compiling, grammars.matcher, grammar)
            except GrammarRefused as error:
                raise BadRequest(str(error)) from error

    async def encode(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """Token ids of texts; ``special``: with what the tokenizer puts before and behind by itself.

        Raises:
            MissingTokenizer: the model directory has no tokenizer.
            BadRequest: they are more than this server takes at once.
        """
        self.check_count(len(texts))
        return await self.compute(
            sum(map(len, texts)),
            lambda: [
                tokens_of(lambda part: self.engine.encode(part, special), text, self.longest)
                for text in texts
            ],
        )

    async def compute(self, size: int, work: Callable[[], _T]) -> _T:
        """Do work on so many characters or numbers; away from the event loop if they are many."""
        if size <= _LONG:
            return work()
        return await asyncio.get_running_loop().run_in_executor(None, work)

    def check_count(self, sequences: int) -> None:
        """Raises BadRequest for more sequences than this server ever takes at once."""
        limit = self.settings.max_concurrent_requests
        if sequences > limit:
            raise BadRequest(f"That is {sequences} sequences at once; this server takes {limit}.")

    def submit(self, requests: Sequence[Request]) -> Outputs:
        """Queue requests, all or none of them.

        Raises:
            TooManyRequests: there is no room for them now.
            BadRequest: there never will be.
            InvalidRequest, EngineStopped: as for `EngineLoop.submit`.
        """
        limit = self.settings.max_concurrent_requests
        self.check_count(len(requests))
        self._check_logprobs(requests)
        if self.loop.in_flight + len(requests) > limit:
            self.metrics.rejected.inc()
            raise TooManyRequests(
                f"{self.loop.in_flight} requests are in flight, and this server takes {limit}."
            )
        return self.loop.submit(requests)

    def _check_logprobs(self, requests: Sequence[Request]) -> None:
        most = sum(_entries(one, self.longest) for one in requests)
        if most > _LOGPROBS:
            raise BadRequest(
                f"The answer would have up to {most} log-probabilities, and this server gives {_LOGPROBS} in one. "
                "Ask for fewer tokens, sequences or alternatives at once."
            )

    async def perform(self, operation: Operation, kind: type[_R]) -> _R:
        """Have an operation carried out; a refusal becomes a reply of the expected type.

        Raises:
            TooManyRequests: too many operations wait for an answer.
            EngineStopped: nothing runs any more.
        """
        pending = len(self.loop.pending)
        if pending >= self.settings.max_pending_operations:
            raise TooManyRequests(f"{pending} operations wait for an answer already.")
        reply = await self.loop.perform(operation, gone())
        if isinstance(reply, kind):
            return reply
        return kind(**{field.name: getattr(reply, field.name) for field in dataclasses.fields(reply)})

    def _on_step(self, step: Step) -> None:
        self.metrics.count(step)
        self.history.ended(step.told)

    def _on_reply(self, operation: Operation, reply: Reply) -> None:
        self.metrics.answered(operation, reply)
        self.history.answered(operation, reply)
        journal.answered(operation, reply)


def _entries(request: Request, longest: int) -> int:
    """Log-probabilities that a request asks for, at most."""
    params = request.params
    if params.logprobs is None:
        return 0
    start = params.prompt_logprobs
    scored = 0 if start is None else max(0, len(request.prompt) - start)
    return (1 + params.logprobs + len(params.logprob_ids)) * (scored + min(params.max_new_tokens, longest))
