"""Sequences that one HTTP request asked for: submitted together, read together, aborted together."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from devicekit.engine import Generation
from devicekit.scheduling.errors import InvalidRequest
from devicekit.scheduling.messages import Output
from devicekit.scheduling.request import Finish, FinishKind, Request, SamplingParams, prompt_array
from devicekit.server.absence import disconnect
from devicekit.server.errors import BadRequest, ClientGone, HttpError
from devicekit.server.serving import Serving

_T = TypeVar("_T")
_TOLD = 10  # things that are wrong


class GenerationFailed(HttpError):
    """The engine could not serve the request."""

    status = 500


def failure(finish: Finish | None) -> HttpError | None:
    """The error to send for a sequence that ended in one; ``None`` for any other."""
    if finish is None or finish.kind is not FinishKind.ERROR:
        return None
    return BadRequest(finish.message) if finish.refused else GenerationFailed(finish.message)


@dataclass(frozen=True, slots=True)
class SequenceSpec:
    """One sequence to complete."""

    tokens: Sequence[int]
    params: SamplingParams
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    priority: int = 0
    namespace: str | None = None  # within which cached prefixes are shared


def namespace_of(extra_key: str | None, cache_salt: str | None) -> str | None:
    """The namespace for cached prefixes: shared by requests with the same key and the same salt."""
    given = [one for one in (extra_key, cache_salt) if one]
    return json.dumps(given) if given else None


class Group:
    """Sequences in flight. A caller that does not read to the end must `close` it.

    Args:
        endpoint: that was asked, as metrics name it.
        names: of parameters that this endpoint calls by another name.

    Raises:
        InvalidRequest, TooManyRequests, BadRequest, Unavailable, Overloaded, EngineStopped: then none of them was
            submitted.
    """

    def __init__(
        self,
        serving: Serving,
        sequences: Sequence[SequenceSpec],
        *,
        stream: bool,
        endpoint: str,
        names: Mapping[str, str],
    ) -> None:
        self._metrics, self._endpoint = serving.metrics, endpoint
        serving.require_open()  # a drain may have begun while the body came
        serving.require_weights()
        longest = serving.engine.runner.limits.max_positions
        for one in sequences:
            if len(one.tokens) >= longest:  # before it is made an array of: it may be very long
                raise BadRequest(
                    f"The prompt has {len(one.tokens)} tokens, and the model takes fewer than {longest}."
                )
        requests = [
            Request(
                one.id,
                prompt_array(one.tokens),
                one.params,
                priority=one.priority,
                stream=stream,
                namespace=one.namespace,
            )
            for one in sequences
        ]
        for request in requests:
            request.seed = serving.engine.draw_seed()
        self.generations = [serving.engine.generation(one) for one in requests]
        self._by_id = {one.id: index for index, one in enumerate(sequences)}
        try:
            self._outputs = serving.submit(requests)
        except InvalidRequest:
            limits = serving.engine.runner.limits
            problems = (one for params in _each_once(requests) for one in params.problems(limits, names))
            if found := [*itertools.islice(problems, _TOLD)]:
                raise BadRequest(f"This request cannot be served: {'; '.join(found)}.") from None
            raise

    async def updates(self) -> AsyncIterator[tuple[int, str, Output]]:
        """Index of the sequence that went on, its new text, and its generation so far."""
        async for output in self._outputs:
            index = self._by_id[output.id]
            if output.finish is not None:
                self._metrics.latency.ended(self._endpoint, output)
            yield index, self.generations[index].receive(output), output

    async def finish(self, request: HttpRequest) -> list[Generation]:
        """Wait for all of them, for as long as the client does.

        Raises:
            GenerationFailed, BadRequest: the engine could not serve one of them, as it was asked.
            ClientGone: the client went away; everything was aborted.
        """
        try:
            await while_connected(request, self._drain)
        finally:
            self.close()
        for generation in self.generations:
            if (error := failure(generation.finish)) is not None:
                raise error
        return self.generations

    async def _drain(self) -> None:
        async for _ in self.updates():
            pass

    def close(self) -> None:
        """Abort what has not ended."""
        self._outputs.close()


def _each_once(requests: Iterable[Request]) -> Iterable[SamplingParams]:
    return {id(one.params): one.params for one in requests}.values()


def values_of(generation: Generation) -> int:
    """About how many values the answer of one sequence has."""
    alternatives = len(generation.logprobs[0].top) if generation.logprobs else 0
    return len(generation.tokens) + len(generation.logprobs) * (3 + 3 * alternatives)


def several(sequence: SequenceSpec, count: int) -> list[SequenceSpec]:
    """The same prompt ``count`` times, each with an id and a seed of its own."""
    if count == 1:
        return [sequence]
    seed = sequence.params.seed
    return [
        dataclasses.replace(
            sequence,
            id=f"{sequence.id}_{index}",
            params=dataclasses.replace(sequence.params, seed=None if seed is None else seed + index),
        )
        for index in range(count)
    ]


async def while_connected(request: HttpRequest, work: Callable[[], Awaitable[_T]]) -> _T:
    """Run some work for as long as the client is connected; the request's body must have been read.

    Raises:
        ClientGone: it went away first, and the work was cancelled.
    """
    working = asyncio.ensure_future(work())
    listening = asyncio.ensure_future(disconnect(request))
    try:
        await asyncio.wait((working, listening), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone("The client went away.")
    finally:
        listening.cancel()
        working.cancel()
