"""Whether the server is alive, able, and ready. Paused is a state of health, not an illness."""

from __future__ import annotations

import asyncio
import time
import uuid

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from devicekit.scheduling.request import SamplingParams
from devicekit.server.endpoints import Arguments, Endpoint, Handler
from devicekit.server.group import Group, Sequence_
from devicekit.server.keys import Access
from devicekit.server.serving import Serving

_LOOK = 0.05  # seconds between two looks at whether the engine got on


def status_of(serving: Serving) -> tuple[str, str]:
    """One word, and a sentence if something is wrong."""
    loop = serving.loop
    if loop.failure is not None:
        return "failed", loop.failure
    if not loop.snapshot.healthy:
        return "failed", "The device is lost."
    seconds = loop.step_seconds
    if seconds > serving.settings.health_timeout:
        return "stalled", f"The engine has been in one step for {seconds:.0f} s."
    return ("paused", "") if loop.snapshot.paused else ("ok", "")


async def health(serving: Serving, arguments: Arguments, request: Request) -> Response:
    """Alive: 200, also while paused."""
    status, message = status_of(serving)
    return _response(status, message, 200 if status in ("ok", "paused") else 503)


async def ready(serving: Serving, arguments: Arguments, request: Request) -> Response:
    """Ready to generate: 503 while paused."""
    status, message = status_of(serving)
    return _response(status, message, 200 if status == "ok" else 503)


async def ping(serving: Serving, arguments: Arguments, request: Request) -> Response:
    """The web server answers; nothing is said of the engine."""
    return JSONResponse({"status": "ok"})


async def health_generate(serving: Serving, arguments: Arguments, request: Request) -> Response:
    """Able: 200 once the engine has computed something, for others or for this probe. Does not wait if paused."""
    status, message = status_of(serving)
    if status != "ok":
        return _response(status, message, 200 if status == "paused" else 503)
    before = serving.loop.snapshot.computed_tokens
    probe = Sequence_([0], SamplingParams(max_new_tokens=1, temperature=0), id=f"health-{uuid.uuid4().hex}")
    group = Group(serving, [probe], stream=False)
    deadline = time.monotonic() + serving.settings.health_timeout
    ending = asyncio.ensure_future(group.finish(request))
    try:
        while time.monotonic() < deadline:
            done, _ = await asyncio.wait((ending,), timeout=_LOOK)
            now = serving.loop.snapshot
            if done:
                return _verdict(ending.exception(), now.paused)
            if now.paused or now.computed_tokens > before:
                return _response("paused" if now.paused else "ok", "", 200)
        return _response("stalled", f"No token in {serving.settings.health_timeout:g} s.", 503)
    finally:
        ending.cancel()
        group.close()


def _verdict(error: BaseException | None, paused: bool) -> Response:
    if error is not None:
        return _response("failed", str(error), 503)
    return _response("paused" if paused else "ok", "", 200)


def _response(status: str, message: str, code: int) -> Response:
    document: dict[str, object] = {"status": status}
    if message:
        document["error"] = {"message": message}
    return JSONResponse(document, code)


def _endpoint(path: str, handler: Handler[Arguments], summary: str) -> Endpoint[Arguments]:
    return Endpoint(
        path, handler, Arguments, summary, methods=("GET",), access=Access.OPEN, in_query=True, tag="health"
    )


ENDPOINTS = (
    _endpoint("/health", health, "Alive: 200, also while paused."),
    _endpoint("/health_generate", health_generate, "Able: 200 once the engine has computed a token."),
    _endpoint("/ready", ready, "Ready to generate: 503 while paused."),
    _endpoint("/ping", ping, "The web server answers."),
)
