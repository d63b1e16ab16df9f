"""Applies the result of a forward pass: adds tokens, lets completed prompts join the batch, and ends requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from devicekit.scheduling.batch import Int32, StepOutput
from devicekit.scheduling.planning import Plan
from devicekit.scheduling.request import Finish, FinishKind, Request
from devicekit.scheduling.requests import Requests
from devicekit.scheduling.scoring import keep_output, keep_prompt
from devicekit.scheduling.stopping import StopConditions
from devicekit.text import GrammarRefused

_LONG_ENOUGH = Finish(FinishKind.LENGTH)
_COMPLETE = Finish(FinishKind.STOP)  # nothing may follow in its grammar
_NONE: dict[str, Request] = {}
_INVALID = (
    "The model's logits for output token {} are NaN or infinite, so there is no such token: its weights are not "
    "sound, or its arithmetic overflows in this dtype."
)


class ResultProcessor:
    """Gives the tokens of a pass to their requests."""

    def __init__(
        self, requests: Requests, known: Int32, stops: StopConditions, invalid_logits: str = "refuse"
    ) -> None:
        """``known`` are the tokens of every row; ``invalid_logits`` as in `SchedulerLimits`."""
        self._marks = invalid_logits == "mark"
        self._requests = requests
        self._known = known
        self._stops = stops

    def process(self, plan: Plan, result: StepOutput) -> None:
        """Append the new tokens, end what is finished, and let completed prompts join the running batch."""
        requests, count = self._requests, plan.decoding
        tokens, invalid = result.tokens, _NONE
        requests.streams.begin()
        if result.invalid:
            tokens, invalid = self._look_at_invalid(plan, result)
        if result.logprobs is not None:
            keep_output(requests.running.requests[:count], plan.chunks, result)
        if result.prompt_logprobs is not None:
            keep_prompt(plan.chunks, result)
        finished = self._advance(tokens[:count], invalid) if count else ()
        for request, finish in finished:
            requests.complete(request, finish)
        wanted = count
        for request, _, end in plan.chunks:
            request.computed = end
            if end == request.total:
                if not invalid or request.id not in invalid:
                    self._complete_prompt(request, tokens.item(wanted))
                wanted += 1
        for request in invalid.values():
            requests.take_back(request, Finish(FinishKind.ERROR, message=_INVALID.format(request.num_output)))
        requests.running.close_up()
        requests.report_streams()
        if requests.streaming:
            for request in requests.streaming.values():
                self._stream(request)

    def _advance(self, tokens: Int32, invalid: Mapping[str, Request]) -> Iterable[tuple[Request, Finish]]:
        """Append the running requests' tokens; returns those that this ends, without any of ``invalid``."""
        requests, running = self._requests, self._requests.running
        at_limit = running.end_step(tokens)
        ended = self._stops.ended(tokens)
        if ended is None and not (requests.watch or invalid):
            return [(request, _LONG_ENOUGH) for request in at_limit] if at_limit else ()
        found: dict[str, tuple[Request, Finish]] = {}
        looks: dict[Request, None] = dict.fromkeys(requests.watch.hits(tokens))
        if ended is not None:
            for column in ended.tolist():
                request = running.requests[column]
                if request.needs_every_step:
                    looks[request] = None
                else:
                    found[request.id] = (request, Finish(FinishKind.STOP, int(tokens[column])))
        for request in looks:
            if request.id in invalid:  # what is no token has no text
                continue
            token = tokens.item(request.column)
            running.settle(request)
            if (finish := self._check(request, token)) is not None:
                found[request.id] = (request, finish)
        for request in at_limit:
            found.setdefault(request.id, (request, _LONG_ENOUGH))
        return (
            [one for identity, one in found.items() if identity not in invalid] if invalid else found.values()
        )

    def _check(self, request: Request, token: int) -> Finish | None:
        """Why its newest token ends a request: a stop condition, or its grammar; ``None``: it goes on."""
        if request.text is not None:
            self._requests.bring_text(request, request.text, request.num_output - 1)
        finish = self._stops.check(request, token)
        if finish is None:
            self._requests.watch.note(request)
        if request.matcher is None:
            return finish
        try:
            if finish is None:
                return _COMPLETE if request.matcher.advance(token) else None
            request.matcher.require()  # an end token is also what is left where nothing can follow
        except GrammarRefused as error:
            return Finish(FinishKind.ERROR, message=str(error), refused=True)
        return finish

    def _look_at_invalid(self, plan: Plan, result: StepOutput) -> tuple[Int32, dict[str, Request]]:
        """The tokens without marks, and the requests that invalid ones end: none, if they only count them."""
        requests, tokens = self._requests, result.tokens
        asking = [*requests.running.requests[: plan.decoding]]
        asking += [request for request, _, end in plan.chunks if end == request.total]
        found = {asking[at].id: asking[at] for at in np.flatnonzero(tokens < 0).tolist()}
        requests.invalid_logits += len(found)
        tokens = np.where(tokens < 0, -1 - tokens, tokens)
        if self._marks:
            for request in found.values():
                requests.mark_invalid(request)
            result.tokens = tokens
            return tokens, _NONE
        return tokens, found

    def _complete_prompt(self, request: Request, token: int) -> None:
        if request.total >= request.max_total_tokens:
            self._requests.end_prompt(request, _LONG_ENOUGH)
            return
        self._requests.join(request, token)
        if request.needs_every_step:
            finish = self._check(request, token)
        else:
            finish = self._stops.end(token)
        if finish is None and request.total >= request.max_total_tokens:
            finish = _LONG_ENOUGH
        if finish is not None:
            self._requests.complete(request, finish)

    def _stream(self, request: Request) -> None:
        """Report new tokens, but hold back those that may turn out to begin a stop string."""
        text = request.text
        # One with a text was looked at in this pass, and its number of tokens written back.
        increment = self._requests.unreported(request, settled=text is not None)
        if text is not None and text.holds:
            settled = text.settled(request.num_output) - request.reported
            increment = increment[: max(0, settled)]
        if increment or (text is not None and text.ready):
            self._requests.report(request, increment)
