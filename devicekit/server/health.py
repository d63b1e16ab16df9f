"""Whether the server is alive, able, and ready. Paused is a state of health, not an illness."""

from __future__ import annotations

import asyncio
import time
import uuid

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from devicekit.scheduling.request import Finish, FinishKind, Request, SamplingParams, prompt_array
from devicekit.server.drains import DRAINED, DRAINING
from devicekit.server.endpoints import Arguments, Endpoint, Handler
from devicekit.server.keys import Access
from devicekit.server.loop import FORKED
from devicekit.server.outputs import Outputs
from devicekit.server.serving import Serving

_ONE_TOKEN = SamplingParams(max_new_tokens=1, temperature=0)
Health = tuple[str, str, int]
"""A word, a sentence if something is wrong, and the status of the answer."""

_ABLE = ("ok", "degraded")
_RESTING = ("paused", DRAINING, DRAINED)  # on purpose: alive, and not ready
_LOOK = 0.05  # seconds between two looks at whether the engine got on


def status_of(serving: Serving) -> tuple[str, str]:
    """One word, and a sentence if something is wrong."""
    loop = serving.loop
    if loop.forked:
        return "failed", FORKED
    if loop.failure is not None or loop.snapshot.failure:
        return "failed", loop.failure or loop.snapshot.failure
    if serving.stopping:
        return "stopping", serving.stopping
    if not loop.alive:
        return "failed", "The engine's thread is not there."
    seconds = max(loop.step_seconds, loop.silent_seconds)
    if seconds > serving.settings.health_timeout:
        where = "in one step" if loop.step_seconds else "silent"
        return "stalled", f"The engine has been {where} for {seconds:.0f} s."
    lost = loop.snapshot.unbalanced
    notes = serving.watch.notes
    if lost:
        notes.append(f"A pool is out of balance, and may run out in time: {lost}.")
    # Whatever holds generation back, requests wait for it as they do for a pause to end.
    message = "; ".join([*loop.snapshot.holds, *notes])
    if word := serving.drains.word:
        return word, "; ".join([serving.drains.reason, *([message] if message else [])])
    if loop.snapshot.resting:
        return "paused", message
    return "degraded" if lost else "ok", message


async def health(serving: Serving, arguments: Arguments, request: HttpRequest) -> Response:
    """Alive: 200, also while paused, drained or degraded."""
    status, message = status_of(serving)
    return _response(status, message, 200 if status in (*_ABLE, *_RESTING) else 503)


async def ready(serving: Serving, arguments: Arguments, request: HttpRequest) -> Response:
    """Ready to generate: 503 while paused or drained, and while draining."""
    status, message = status_of(serving)
    return _response(status, message, 200 if status in _ABLE else 503)


async def ping(serving: Serving, arguments: Arguments, request: HttpRequest) -> Response:
    """The web server answers; nothing is said of the engine."""
    return JSONResponse({"status": "ok"})


async def health_generate(serving: Serving, arguments: Arguments, request: HttpRequest) -> Response:
    """Able: 200 once the engine has computed something, for others or for this probe. Does not wait if paused."""
    status, message = status_of(serving)
    if status not in _ABLE:
        return _response(status, message, 200 if status in _RESTING else 503)
    # One probe serves all who ask meanwhile: each takes a place among the requests.
    if serving.probe is None or serving.probe.done():
        serving.probe = asyncio.ensure_future(_probe(serving))
    return _response(*await asyncio.shield(serving.probe))


async def _probe(serving: Serving) -> Health:
    before = serving.loop.snapshot.computed_tokens
    deadline = time.monotonic() + serving.settings.health_timeout
    probe = Request(f"health-{uuid.uuid4().hex}", prompt_array([0]), _ONE_TOKEN)
    outputs = serving.loop.submit([probe])  # a server that has all the requests it takes is not ill
    ending = asyncio.ensure_future(_finish(outputs))
    try:
        while time.monotonic() < deadline:
            done, _ = await asyncio.wait((ending,), timeout=_LOOK)
            now = serving.loop.snapshot
            if done:
                return _verdict(ending, now.resting)
            if now.resting or now.computed_tokens > before:
                return ("paused" if now.resting else "ok"), "", 200
        return "stalled", f"No token in {serving.settings.health_timeout:g} s.", 503
    finally:
        ending.cancel()
        outputs.close()


async def _finish(outputs: Outputs) -> Finish | None:
    finish = None
    async for output in outputs:
        finish = output.finish
    return finish


def _verdict(ending: asyncio.Future[Finish | None], paused: bool) -> Health:
    if (error := ending.exception()) is not None:
        return "failed", str(error), 503
    finish = ending.result()
    if finish is not None and finish.kind is FinishKind.ERROR:
        return "failed", finish.message, 503
    return ("paused" if paused else "ok"), "", 200


def _response(status: str, message: str, code: int) -> Response:
    document: dict[str, object] = {"status": status}
    if message and code == 200:
        document["message"] = message
    elif message:
        document["error"] = {"message": message}
    return JSONResponse(document, code)


def _endpoint(path: str, handler: Handler[Arguments], summary: str) -> Endpoint[Arguments]:
    return Endpoint(
        path, handler, Arguments, summary, methods=("GET",), access=Access.OPEN, in_query=True, tag="health"
    )


ENDPOINTS = (
    _endpoint("/health", health, "Alive: 200, also while paused or drained."),
    _endpoint("/health_generate", health_generate, "Able: 200 once the engine has computed a token."),
    _endpoint("/ready", ready, "Ready to generate: 503 while paused or drained."),
    _endpoint("/ping", ping, "The web server answers."),
)
