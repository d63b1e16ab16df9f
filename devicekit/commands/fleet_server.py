"""The web server of a served fleet: bounded connections, and an end that comes when it is asked for."""

from __future__ import annotations

import os
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from devicekit.server.protocol import BoundedProtocol

GRACE = 10  # seconds that verbs get to end; what is cut short then is resumed by the next process


def server(app: Starlette, *, host: str, port: int) -> uvicorn.Server:
    """A server for the application of a fleet."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=BoundedProtocol,
        ws="none",
        log_level="warning",
        proxy_headers=False,  # nothing here depends on who asks
        timeout_graceful_shutdown=GRACE,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """Told to stop once, it lets verbs end for a while; told again, the process ends at once."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        super().handle_exit(sig, frame)
