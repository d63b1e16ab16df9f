"""Runs the application on uvicorn until it is told to stop."""

from __future__ import annotations

import socket

import uvicorn
from starlette.applications import Starlette

from devicekit.contract.errors import ConfigurationError
from devicekit.server.protocol import BoundedProtocol
from devicekit.server.settings import ServerSettings

_BACKLOG = 2048
_GRACE = 5  # seconds that open connections get at the end


def run(web: Server, listener: socket.socket) -> int:
    """Serve until interrupted."""
    listener.listen(_BACKLOG)  # those that come before the application is up wait for it
    web.run(sockets=[listener])
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
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"Cannot listen on {settings.host} port {settings.port}: {error}") from error
    return listener


def server(app: Starlette) -> Server:
    """A uvicorn server for the application."""
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=_GRACE,
    )
    return Server(config)


class Server(uvicorn.Server):
    """Says where it serves once requests and signals can come."""

    asked_to_stop = False  # may be set from any thread, and however early: it stops once it has begun

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or () if self.started else ():
            host, port = one.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"Serving on http://{shown}:{port}", flush=True)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self.asked_to_stop
