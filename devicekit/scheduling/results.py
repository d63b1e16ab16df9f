"""What becomes of a forward pass: tokens are noted, prompts join the batch, and what is finished ends."""

from __future__ import annotations

from collections.abc import Iterable

from devicekit.scheduling.batch import Int32, Logprobs, StepOutput
from devicekit.scheduling.planning import Plan
from devicekit.scheduling.request import Finish, FinishKind, Request, TokenLogprob
from devicekit.scheduling.state import SchedulerState
from devicekit.scheduling.stopping import StopConditions

_LONG_ENOUGH = Finish(FinishKind.LENGTH)


class ResultProcessor:
    """Brings the tokens of a pass to their requests."""

    def __init__(self, state: SchedulerState, stops: StopConditions) -> None:
        self._state = state
        self._stops = stops

    def process(self, plan: Plan, result: StepOutput) -> None:
        """Append the new tokens, end what is finished, and let completed prompts join the running batch."""
        state, count = self._state, plan.decoding
        if result.logprobs is not None:
            self._keep_logprobs(plan, result.tokens, result.logprobs)
        finished = self._advance(result.tokens[:count]) if count else ()
        for request, finish in finished:
            state.complete(request, finish)
        wanted = count
        for request, _, end in plan.chunks:
            request.computed = end
            if end == request.total:
                self._complete_prompt(request, result.tokens.item(wanted))
                wanted += 1
        state.running.close_up()
        if state.streaming:
            for identity in sorted(state.streaming):
                self._stream(state.requests[identity])

    def _advance(self, tokens: Int32) -> Iterable[tuple[Request, Finish]]:
        """Append the running requests' tokens; return those that this ended, each once."""
        state, requests = self._state, self._state.running.requests
        at_limit = state.running.end_step(tokens)
        ended = self._stops.ended(tokens)
        if ended is None and not state.special:
            return [(request, _LONG_ENOUGH) for request in at_limit] if at_limit else ()
        found: dict[str, tuple[Request, Finish]] = {}
        if ended is not None:
            for column in ended.tolist():
                request = requests[column]
                if request.id not in state.special:
                    found[request.id] = (request, Finish(FinishKind.STOP, int(tokens[column])))
        for identity in sorted(state.special):  # a set has another order in every process
            request = state.requests[identity]
            if request.column >= 0:
                state.running.settle(request)
                output = state.kv.table.tokens[request.row, len(request.prompt) : request.total]
                if (finish := self._stops.check(request, output)) is not None:
                    found[identity] = (request, finish)
        for request in at_limit:
            found.setdefault(request.id, (request, _LONG_ENOUGH))
        return found.values()

    def _complete_prompt(self, request: Request, token: int) -> None:
        state, tokens = self._state, self._state.kv.table.tokens
        state.kv.publish(request)
        state.prefilling.remove(request)
        tokens[request.row, request.total] = token
        request.total += 1
        state.running.join(request)
        if request.id in state.special:
            finish = self._stops.check(request, tokens[request.row, len(request.prompt) : request.total])
        else:
            finish = self._stops.end(token)
        if finish is None and request.total >= request.limit:
            finish = _LONG_ENOUGH
        if finish is not None:
            state.complete(request, finish)

    def _stream(self, request: Request) -> None:
        """Report new tokens, holding back those whose text may turn out to be the beginning of a stop string."""
        increment, text = self._state.unreported(request), request.text
        if text is not None:
            settled = text.settled(request.num_output) - request.reported
            increment = increment[: max(0, settled)]
        if increment or (text is not None and text.ready):
            self._state.outputs.append(self._state.output(request, increment, None))

    def _keep_logprobs(self, plan: Plan, tokens: Int32, logprobs: Logprobs) -> None:
        requests = [*self._state.running.requests[: plan.decoding]]
        requests += [request for request, _, end in plan.chunks if end == request.total]
        for at, request in enumerate(requests):
            asked = request.params.logprobs
            if asked is not None:
                ids, values = logprobs.top_ids[at, :asked], logprobs.top_values[at, :asked]
                top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
                if request.logprobs is None:
                    request.logprobs = []
                request.logprobs.append(TokenLogprob(int(tokens[at]), float(logprobs.chosen[at]), top))
