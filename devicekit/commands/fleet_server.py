"""The web server of a served fleet: bounded connections, and an end that comes when it is asked for."""

from __future__ import annotations

import uvicorn
from starlette.applications import Starlette

from devicekit.server.protocol import BoundedProtocol
from devicekit.server.run import PromptServer

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
    return PromptServer(config)
