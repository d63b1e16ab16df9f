"""What becomes of a forward pass: tokens are noted, prompts join the batch, and what is finished ends."""

from __future__ import annotations

from collections.abc import Iterable

from devicekit.scheduling.batch import Int32, Logprobs, StepOutput
from devicekit.scheduling.planning import Plan
from devicekit.scheduling.request import Finish, FinishKind, Request, TokenLogprob
from devicekit.scheduling.requests import Requests
from devicekit.scheduling.stopping import StopConditions

_LONG_ENOUGH = Finish(FinishKind.LENGTH)


class ResultProcessor:
    """Brings the tokens of a pass to their requests."""

    def __init__(self, requests: Requests, known: Int32, stops: StopConditions) -> None:
        """``known`` are the tokens of every row."""
        self._requests = requests
        self._known = known
        self._stops = stops

    def process(self, plan: Plan, result: StepOutput) -> None:
        """Append the new tokens, end what is finished, and let completed prompts join the running batch."""
        requests, count = self._requests, plan.decoding
        if result.logprobs is not None:
            self._keep_logprobs(plan, result.tokens, result.logprobs)
        finished = self._advance(result.tokens[:count]) if count else ()
        for request, finish in finished:
            requests.complete(request, finish)
        wanted = count
        for request, _, end in plan.chunks:
            request.computed = end
            if end == request.total:
                self._complete_prompt(request, result.tokens.item(wanted))
                wanted += 1
        requests.running.close_up()
        for request in requests.streaming.values():
            self._stream(request)

    def _advance(self, tokens: Int32) -> Iterable[tuple[Request, Finish]]:
        """Append the running requests' tokens; return those that this ended, each once."""
        requests, running = self._requests, self._requests.running
        at_limit = running.end_step(tokens)
        ended = self._stops.ended(tokens)
        if ended is None and not requests.special:
            return [(request, _LONG_ENOUGH) for request in at_limit] if at_limit else ()
        found: dict[str, tuple[Request, Finish]] = {}
        if ended is not None:
            for column in ended.tolist():
                request = running.requests[column]
                if request.id not in requests.special:
                    found[request.id] = (request, Finish(FinishKind.STOP, int(tokens[column])))
        for request in requests.special.values():
            running.settle(request)
            output = self._known[request.row, len(request.prompt) : request.total]
            if (finish := self._stops.check(request, output)) is not None:
                found[request.id] = (request, finish)
        for request in at_limit:
            found.setdefault(request.id, (request, _LONG_ENOUGH))
        return found.values()

    def _complete_prompt(self, request: Request, token: int) -> None:
        self._requests.join(request, token)
        if request.id in self._requests.special:
            output = self._known[request.row, len(request.prompt) : request.total]
            finish = self._stops.check(request, output)
        else:
            finish = self._stops.end(token)
        if finish is None and request.total >= request.limit:
            finish = _LONG_ENOUGH
        if finish is not None:
            self._requests.complete(request, finish)

    def _stream(self, request: Request) -> None:
        """Report new tokens, holding back those whose text may turn out to be the beginning of a stop string."""
        increment, text = self._requests.unreported(request), request.text
        if text is not None:
            settled = text.settled(request.num_output) - request.reported
            increment = increment[: max(0, settled)]
        if increment or (text is not None and text.ready):
            self._requests.report(request, increment)

    def _keep_logprobs(self, plan: Plan, tokens: Int32, logprobs: Logprobs) -> None:
        requests = [*self._requests.running.requests[: plan.decoding]]
        requests += [request for request, _, end in plan.chunks if end == request.total]
        for at, request in enumerate(requests):
            asked = request.params.logprobs
            if asked is not None:
                ids, values = logprobs.top_ids[at, :asked], logprobs.top_values[at, :asked]
                top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
                if request.logprobs is None:
                    request.logprobs = []
                request.logprobs.append(TokenLogprob(int(tokens[at]), float(logprobs.chosen[at]), top))
