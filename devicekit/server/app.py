"""The application: every endpoint over one engine, whose thread lives as long as the application does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from devicekit.engine import Engine
from devicekit.server import (
    chat,
    completions,
    control,
    fleet_member,
    generate,
    health,
    info,
    loads,
    memory,
    openapi,
    status,
    tokenization,
    weight_groups,
    weight_reading,
    weight_session,
    weight_sharing,
    weights,
)
from devicekit.server.endpoints import GENERATION
from devicekit.server.errors import on_fault, on_http_exception
from devicekit.server.fields import meanings
from devicekit.server.request_ids import HEADER, RequestIds
from devicekit.server.sampling import SamplingArguments
from devicekit.server.serving import Serving
from devicekit.server.settings import ServerSettings

ENDPOINTS = (
    *generate.ENDPOINTS,
    *completions.ENDPOINTS,
    *chat.ENDPOINTS,
    *tokenization.ENDPOINTS,
    *control.ENDPOINTS,
    *weights.ENDPOINTS,
    *weight_groups.ENDPOINTS,
    *weight_sharing.ENDPOINTS,
    *fleet_member.ENDPOINTS,
    *weight_session.ENDPOINTS,
    *weight_reading.ENDPOINTS,
    *memory.ENDPOINTS,
    *health.ENDPOINTS,
    *loads.ENDPOINTS,
    *info.ENDPOINTS,
    *status.ENDPOINTS,
    *openapi.ENDPOINTS,
)


def create_app(engine: Engine, settings: ServerSettings | None = None) -> Starlette:
    """An ASGI application that serves ``engine``. While it runs nobody else may step the engine."""
    serving = Serving(engine, settings or ServerSettings())

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        serving.loop.start()
        watching = asyncio.ensure_future(serving.keep_watch())
        try:
            yield
        finally:
            watching.cancel()
            await serving.close()

    origins = serving.settings.allowed_origins
    cross_origin = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "POST", "PUT"),
        allow_headers=("*",),
        expose_headers=(HEADER, "X-Devicekit-Ignored"),
    )
    app = Starlette(
        middleware=[Middleware(RequestIds), *([cross_origin] if origins else [])],
        routes=[route for endpoint in ENDPOINTS for route in endpoint.routes()],
        exception_handlers={HTTPException: on_http_exception, Exception: on_fault},
        lifespan=lifespan,
    )
    # A client that follows to where the Host header says takes its key along, and through a proxy without TLS.
    app.router.redirect_slashes = False
    app.state.serving = serving
    app.state.openapi = openapi.describe(ENDPOINTS)
    app.state.meanings = meanings(
        {
            "sampling_params": SamplingArguments,
            **{one.path: one.arguments for one in ENDPOINTS if one.tag == GENERATION},
        }
    )
    return app
