"""The requests that are not finished, and their life: waiting, prefilling, running, ended, or back to waiting.

Only `Requests` moves a request from one of these to another, reports its tokens, and records which weights made
them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from devicekit.clock import Clock, SystemClock
from devicekit.scheduling.adjusting import LogitAdjuster
from devicekit.scheduling.batch import ModelLimits
from devicekit.scheduling.deadlines import Deadlines
from devicekit.scheduling.kv_cache.manager import KVCacheManager
from devicekit.scheduling.messages import Output
from devicekit.scheduling.request import Finish, FinishKind, Request, Times, TokenLogprob, VersionSpan
from devicekit.scheduling.running import RunningBatch
from devicekit.scheduling.stop_watch import StopWatch
from devicekit.scheduling.stopping import StopConditions
from devicekit.scheduling.streaming import Streams
from devicekit.scheduling.token_columns import TokenColumns
from devicekit.scheduling.waiting import WaitingQueue
from devicekit.text import RequestText, Vocabulary


@dataclass(slots=True)
class CacheFigures:
    """How much of the prompts the prefix cache has held since it was last flushed."""

    prompt_tokens: int = 0  # of requests that ended
    cached_tokens: int = 0  # of those, found in the cache
    epochs: int = 0  # flushes so far

    @property
    def hit_rate(self) -> float | None:
        """Share of prompt tokens that were found; ``None`` before there were any."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None

    def reset(self) -> None:
        """Count anew, after a flush."""
        self.prompt_tokens = self.cached_tokens = 0
        self.epochs += 1


class Requests(Mapping[str, Request]):
    """All requests that are not finished, by id.

    A request that costs something in every step is also listed by what it asks for, while it holds KV (``watch``,
    ``streams``, ``adjusted`` and so on); all others cost nothing beyond their column in the batch. Nobody else
    writes to any of these.
    """

    def __init__(
        self,
        kv: KVCacheManager,
        running: RunningBatch,
        waiting: WaitingQueue,
        deadlines: Deadlines,
        limits: ModelLimits,
        clock: Clock | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self._now = (clock or SystemClock()).now
        self._kv = kv
        self._deadlines = deadlines
        self._limits = limits
        self._all: dict[str, Request] = {}
        self._outputs: list[Output] = []  # since the last step
        self._columns: TokenColumns | None = None  # of the last pass, not taken yet
        self.running = running
        self.waiting = waiting
        self.prefilling: list[Request] = []
        self.watch = StopWatch(running, vocabulary, limits.vocab_size)  # that run and have stop conditions
        self.streams = Streams(running)  # that run and report tokens as they come, and nothing else
        self.streaming: dict[str, Request] = {}  # that run and report more than tokens as they come
        self.adjusted: dict[str, LogitAdjuster] = {}  # that hold KV and have wishes for their logits
        self.constrained: dict[str, Request] = {}  # that hold KV and whose output follows a grammar
        self.cache_figures = CacheFigures()
        self.invalid_logits = 0  # tokens so far for which the logits were NaN or infinite
        self.weight_version = "default"
        self.weights_epoch = 0  # grows whenever a weight changes; prefixes are shared only within one

    def __getitem__(self, identity: str) -> Request:
        return self._all[identity]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, identity: object) -> bool:
        return identity in self._all

    @property
    def holding_kv(self) -> int:
        """How many requests hold KV."""
        return len(self.running.requests) + len(self.prefilling)

    def namespace(self, request: Request) -> Hashable:
        """The namespace in which prefixes may be shared: never across tenants, adapters or weights."""
        return (request.namespace, self.weights_epoch)

    # -- The life of a request --------------------------------------------------------------------------------

    def add(self, request: Request, deadline: float | None = None) -> None:
        """Take in a request; it waits, at most until ``deadline``."""
        self._all[request.id] = request
        request.arrived = self._now()
        if deadline is not None:
            self._deadlines.add(request, deadline)
        self.waiting.add(request)

    def refuse(self, request: Request, message: str) -> None:
        """Report the end of a request that was not taken in."""
        finish = Finish(FinishKind.ERROR, message=message)
        self._outputs.append(Output(request.id, (), finish, prompt_tokens=len(request.prompt)))

    def start(self, request: Request) -> None:
        """Begin with the prompt of a waiting request that has got its row and pages."""
        self.waiting.remove(request)
        if request.total == len(request.prompt):
            request.cached_tokens = request.computed
        self._kv.table.token_rows.write_array(request.row, request.tokens)
        self.prefilling.append(request)
        if request.started is None:
            request.started = self._now()
        if request.needs_every_step and request.params.adjusts:
            self.adjusted[request.id] = LogitAdjuster(request, self._limits)
        if request.matcher is not None:
            self.constrained[request.id] = request

    def join(self, request: Request, token: int) -> None:
        """Let a request whose prompt is computed decode from now on; ``token`` is its first output token."""
        self._kv.publish(request)
        self.prefilling.remove(request)
        self._kv.table.tokens[request.row, request.total] = token
        request.total += 1
        if request.answered is None:
            request.answered = self._now()
        self.running.join(request)
        if request.needs_every_step:
            if StopConditions.is_special(request.params):
                self.watch.join(request)
            if Streams.takes(request):
                self.streams.join(request)
            elif request.stream:
                self.streaming[request.id] = request

    def end_prompt(self, request: Request, finish: Finish) -> None:
        """End a request whose prompt is computed and of which nothing else was wanted."""
        self._kv.publish(request)
        self.finish(request, finish)

    def take_back(self, request: Request, finish: Finish) -> None:
        """End a request whose last step gave no valid token, and drop the token that was recorded for it.

        What it computed is not shared. Its column stays vacant, as after `complete`.
        """
        if request.column < 0:
            self.finish(request, finish)
            return
        self._vacate(request)
        request.total -= 1
        self._close(request, finish)

    def finish(self, request: Request, finish: Finish) -> None:
        """End a request wherever it is, and give back what it holds."""
        self._detach(request)
        self._close(request, finish)

    def complete(self, request: Request, finish: Finish) -> None:
        """End a running request that came to its end, and leave what it computed in the prefix cache.

        Its column stays vacant: call ``running.close_up`` when all requests of this pass have ended or joined.
        """
        self._vacate(request)
        self._kv.publish(request)
        self._close(request, finish)

    def retract(self, request: Request) -> None:
        """Take a request's KV and put it back among the waiting. Its tokens are kept."""
        self._detach(request)
        self._close_span(request)  # those that wait are not looked at when the weights change
        request.tokens = self._kv.table.tokens[request.row, : request.total].copy()
        self._kv.free(request)
        if request.needs_every_step:
            self._unlist(request)
        request.retractions += 1
        self.waiting.add(request)

    def _close(self, request: Request, finish: Finish) -> None:
        tokens = self._unreported(request)
        if request.text is not None:
            finish = self._end_text(request, request.text, finish)
        self.cache_figures.prompt_tokens += len(request.prompt)
        self.cache_figures.cached_tokens += request.cached_tokens
        self._kv.free(request)
        del self._all[request.id]
        if request.needs_every_step:
            self._unlist(request)
        if request.deadline is not None:
            self._deadlines.discard(request)
        self._close_span(request)
        self._outputs.append(self._output(request, tokens, finish))

    def _detach(self, request: Request) -> None:
        """Take a request out of the batch or list that it is in."""
        if request.column >= 0:
            self._vacate(request)
            self.running.close_up()
        elif request.row:
            self.prefilling.remove(request)
        else:
            self.waiting.remove(request)

    def _vacate(self, request: Request) -> None:
        """Take a request out of the running batch; its column is to be closed up."""
        self.running.vacate(request)
        if request.needs_every_step:
            self.watch.leave(request)
            self.streams.leave(request)

    def _unlist(self, request: Request) -> None:
        for wanted in (self.streaming, self.adjusted, self.constrained):
            wanted.pop(request.id, None)

    # -- What is reported -------------------------------------------------------------------------------------

    def unreported(self, request: Request, *, settled: bool = False) -> tuple[int, ...]:
        """Output tokens that no `Output` has carried yet; ``settled``: their number is written back already."""
        if request.column >= 0 and not settled:
            self.running.settle(request)
        return self._unreported(request)

    def report(self, request: Request, tokens: tuple[int, ...]) -> None:
        """Report tokens of a request that goes on."""
        self._outputs.append(self._output(request, tokens, None))

    def report_streams(self) -> None:
        """Report what a pass gave to requests that stream nothing but tokens."""
        self._columns = self.streams.tell()

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The outputs that `take_outputs` will return."""
        return tuple(self._outputs)

    def take_outputs(self) -> tuple[Output, ...]:
        """The outputs since the last call, without what `take_columns` returns."""
        if not self._outputs:
            return ()
        outputs, self._outputs = tuple(self._outputs), []
        return outputs

    def take_columns(self) -> TokenColumns | None:
        """The tokens of streams since the last call."""
        columns, self._columns = self._columns, None
        return columns

    def _unreported(self, request: Request) -> tuple[int, ...]:
        return self._output_tokens(request, request.reported)

    def _output_tokens(self, request: Request, first: int) -> tuple[int, ...]:
        """Output tokens from the ``first`` on."""
        start = len(request.prompt) + first
        if request.row:
            return self._kv.table.token_rows.numbers(request.row, start, request.total)
        return tuple(request.tokens[start:].tolist())

    def _output(self, request: Request, tokens: tuple[int, ...], finish: Finish | None) -> Output:
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
        prompt_logprobs, request.prompt_logprobs = tuple(request.prompt_logprobs), []
        size = len(request.prompt)
        return Output(
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
            prompt_logprobs,
            request.invalid_logits,
            None if finish is None else self._times(request),
        )

    def _times(self, request: Request) -> Times | None:
        arrived = request.arrived
        if arrived is None:
            return None
        queued = None if request.started is None else request.started - arrived
        first = None if request.answered is None else request.answered - arrived
        return Times(queued, first, self._now() - arrived)

    # -- Which weights made what ------------------------------------------------------------------------------

    def weights_changed(self, version: str) -> None:
        """Record that the weights changed and have a new name. What requests hold is shared no more."""
        self.name_weights(version)
        for request in self._holding_kv():
            request.no_prefix_sharing = True
        self.weights_epoch += 1

    def name_weights(self, version: str) -> None:
        """Give the weights another name; output tokens so far are recorded under the old one."""
        for request in self._holding_kv():
            if request.column >= 0:
                self.running.settle(request)
            self._close_span(request)
        self.weight_version = version
        self.streams.changed()

    def _holding_kv(self) -> Iterator[Request]:
        """The requests that hold KV. Of all others it is recorded already which weights made their tokens."""
        yield from self.running.requests
        yield from self.prefilling

    def mark_invalid(self, request: Request) -> None:
        """Count a token that was drawn from NaN or infinite logits, of a request that goes on."""
        request.invalid_logits += 1
        self.streams.changed()

    def _close_span(self, request: Request) -> None:
        """Record which weights made the output tokens since the last record."""
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

    def bring_text(self, request: Request, text: RequestText, count: int) -> None:
        """Add what is missing of a request's first ``count`` tokens to its text. None of them ends it."""
        if text.pushed < count:
            missing = self._output_tokens(request, text.pushed)[: count - text.pushed]
            text.extend(missing, each=request.params.logprobs is not None)

    def _end_text(self, request: Request, text: RequestText, finish: Finish) -> Finish:
        """End a request's text. A stop string that is certain only now is the reason for its end."""
        if not text.ended:
            self.bring_text(request, text, request.num_output)
        stop = text.end(searched=finish.kind in (FinishKind.STOP, FinishKind.LENGTH))
        if stop is None or finish.kind is not FinishKind.LENGTH:
            return finish
        return Finish(FinishKind.STOP, stop)
