"""One replica: the server's own application over one engine, behind a front that keeps control out of it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import ray
from starlette.types import ASGIApp, Receive, Scope, Send

from devicekit.contract.errors import ConfigurationError
from devicekit.engine import Engine, EngineConfig
from devicekit.ray_serve.arguments import Arguments
from devicekit.ray_serve.front import Front
from devicekit.ray_serve.keys import read_keys
from devicekit.ray_serve.registry import BEAT
from devicekit.server.app import create_app
from devicekit.server.health import status_of
from devicekit.server.run import Server, bind, server
from devicekit.server.settings import ServerSettings

_STARTING = 0.05  # seconds between two looks
_front: Front | None = None  # of the one replica of this process


def front_of_this_process() -> ASGIApp:
    """What Ray sends this replica's requests to."""
    assert _front is not None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert _front is not None
        await _front(scope, receive, send)

    return app


class Replica:
    """An engine and its server: on a port of its own for the fleet, behind Ray's proxies for everybody else."""

    async def __init__(self, arguments: dict[str, Any], steward: Any) -> None:  # type: ignore[misc]  # Ray waits
        """``arguments``: as of `Arguments`; ``steward``: handle of the deployment that steers.

        Raises:
            ConfigurationError: an argument is not one of the engine's or the server's, or the port cannot be had.
        """
        global _front
        given = Arguments.model_validate(arguments)
        engine = await asyncio.to_thread(_engine, given)
        settings = _settings(given)
        listener = bind(settings)
        listener.listen()
        settings = dataclasses.replace(settings, port=listener.getsockname()[1])
        app = create_app(engine, settings)
        self._serving = app.state.serving
        self._steward = steward
        self._web: Server = server(app)
        self._web.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # signals are Ray's
        self._running = asyncio.ensure_future(self._web.serve(sockets=[listener]))
        while not self._web.started:
            if self._running.done():
                raise ConfigurationError(f"The replica's server ended at its start: {self._running}")
            await asyncio.sleep(_STARTING)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._url = f"http://{host}:{settings.port}"
        _front = Front(app, steward)
        self._beating = asyncio.ensure_future(self._beat())
        # Ray sends no request before this returns: the replica has the fleet's weights then.
        await steward.joined.remote(self._url)

    async def _beat(self) -> None:
        actor = ray.get_runtime_context().current_actor
        while True:
            with contextlib.suppress(Exception):  # the steward is being started anew: it hears the next one
                await self._steward.heard.remote(self._url, actor)
            await asyncio.sleep(BEAT)

    async def check_health(self) -> None:
        """Called by Ray, which replaces a replica that keeps raising here."""
        status, message = status_of(self._serving)
        if status in ("failed", "stalled"):
            raise RuntimeError(f"The engine is {status}: {message}")

    async def __del__(self) -> None:
        self._beating.cancel()
        with contextlib.suppress(Exception):
            await self._steward.left.remote(self._url)
        self._web.should_exit = True
        with contextlib.suppress(Exception):
            await self._running


def _engine(given: Arguments) -> Engine:
    return Engine.open(
        given.model, given.device, config=_fill(EngineConfig, {**given.engine, "await_fleet": True})
    )


def _settings(given: Arguments) -> ServerSettings:
    keys = read_keys(given)
    root = given.weights_root or Path(given.model)
    host = ray.util.get_node_ip_address() if given.control_host == "node" else given.control_host
    own: dict[str, object] = {
        "host": host,
        "port": 0,
        "api_key": keys.user,
        "admin_api_key": keys.admin,
        "allowed_weights_roots": (root, Path(given.model)),
    }
    settings: ServerSettings = _fill(ServerSettings, {**given.server, **own})
    return settings


def _fill(kind: type[Any], given: dict[str, object]) -> Any:
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(given.keys() - known):
        raise ConfigurationError(
            f"{kind.__name__} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}."
        )
    return kind(**given)
