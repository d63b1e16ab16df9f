"""The status page, and the document that it shows live."""

from __future__ import annotations

import dataclasses
import time
from functools import cache
from importlib import resources

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from devicekit import __version__
from devicekit.server.endpoints import Arguments, Endpoint
from devicekit.server.health import status_of
from devicekit.server.keys import Access
from devicekit.server.serving import Serving

_SHOWN = 20  # requests in flight, the oldest first
# The pages are self-contained: nothing may be loaded from, or sent to, anywhere else.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


async def status(serving: Serving, arguments: Arguments, request: Request) -> Response:
    """Everything that the status page shows."""
    word, message = status_of(serving)
    engine, loop, history = serving.engine, serving.loop, serving.history
    return JSONResponse(
        {
            "now": time.time(),
            "status": word,
            "message": message,
            "version": __version__,
            "model": serving.model_name,
            "device": engine.device.backend.label,
            "uptime": time.time() - serving.started,
            "page_size": engine.config.page_size,
            "page_bytes": engine.plan.page_bytes,
            "max_running": engine.config.max_running,
            "engine": dataclasses.asdict(loop.snapshot),
            "in_flight": loop.in_flight,
            "requests": [{"id": one, "seconds": seconds} for one, seconds in loop.oldest(_SHOWN)],
            "failures": [dataclasses.asdict(one) for one in reversed(history.failures)],
            "pending": [
                {"operation": type(one.operation).__name__, "seconds": time.monotonic() - one.since}
                for one in loop.pending
            ],
            "operations": [dataclasses.asdict(one) for one in reversed(history.operations)],
            "samples": [dataclasses.asdict(one) for one in history.samples],
        }
    )


async def status_page(serving: Serving, arguments: Arguments, request: Request) -> Response:
    """The status page; it asks for a key itself if one is needed."""
    return page("status.html")


def page(name: str) -> Response:
    """One of the pages that come with the server."""
    return HTMLResponse(_text(name), headers={"Content-Security-Policy": _POLICY, "X-Frame-Options": "DENY"})


@cache
def _text(name: str) -> str:
    return resources.files("devicekit.server").joinpath(name).read_text(encoding="utf-8")


ENDPOINTS = (
    Endpoint(
        "/status",
        status,
        Arguments,
        "What the status page shows.",
        methods=("GET",),
        access=Access.USER,
        in_query=True,
    ),
    Endpoint(
        "/",
        status_page,
        Arguments,
        "The status page.",
        methods=("GET",),
        access=Access.OPEN,
        in_query=True,
    ),
)
