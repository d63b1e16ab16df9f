"""Runs the application on uvicorn until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from devicekit.contract.errors import ConfigurationError
from devicekit.server.protocol import BoundedProtocol, raise_file_limit
from devicekit.server.serving import Serving
from devicekit.server.settings import ServerSettings

_BACKLOG = 2048
_GRACE = 5  # seconds that open connections get at the very end, to take what was sent


def run(web: Server, listener: socket.socket) -> int:
    """Serve until interrupted; the exit status."""
    raise_file_limit()
    listener.listen(_BACKLOG)  # those that come before the application is up wait for it
    web.run(sockets=[listener])
    if web.serving is not None and web.serving.loop.alive:
        print("The engine did not come to the end of a step; it is left behind.", file=sys.stderr)
        return 1
    return 0


def bind(settings: ServerSettings) -> socket.socket:
    """A socket of the server's address, which refuses connections until the server runs.

    Raises:
        ConfigurationError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio turns off Nagle's algorithm only where the protocol is spelled out; with it, every second small write
    # of a stream waits 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except (OSError, TypeError, ValueError) as error:  # a name that cannot be encoded is one of the latter
        listener.close()
        raise ConfigurationError(f"Cannot listen on {settings.host} port {settings.port}: {error}") from error
    return listener


def server(app: Starlette, *, access_log: bool = False) -> Server:
    """A uvicorn server for the application; ``access_log``: it hands a line for every request to its logger."""
    serving: Serving | None = getattr(app.state, "serving", None)
    settings = ServerSettings() if serving is None else serving.settings
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        log_level="warning",
        access_log=access_log,
        lifespan="on",
        backlog=512,
        proxy_headers=False,  # nothing here depends on who asks
        timeout_keep_alive=settings.keep_alive_seconds,  # type: ignore[arg-type]  # any number will do
        timeout_graceful_shutdown=_GRACE,
    )
    return Server(config, serving)


class PromptServer(uvicorn.Server):
    """Told to stop a second time, the process ends at once."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        super().handle_exit(sig, frame)


class Server(PromptServer):
    """Prints where it serves once requests and signals can come, and shuts down in good order.

    Told to stop, it takes no more requests to generate, lets those in flight end within the set time, and ends the
    others; then it closes its connections.
    """

    asked_to_stop = False  # may be set from any thread, and however early: it stops once it has begun

    def __init__(self, config: uvicorn.Config, serving: Serving | None = None) -> None:
        super().__init__(config)
        self.serving = serving

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.serving is not None:
            await self.serving.drain(hurry=lambda: self.force_exit)
        # Whoever does not read what was sent is not waited for.
        asyncio.get_running_loop().call_later(_GRACE - 1, self._abort)
        await super().shutdown(sockets)

    def _abort(self) -> None:
        for connection in [*self.server_state.connections]:
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or () if self.started else ():
            host, port = one.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"Serving on http://{shown}:{port}", flush=True)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self.asked_to_stop
