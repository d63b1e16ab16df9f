"""Serves an engine over HTTP: generation, the control verbs, and what an operator wants to see.

`create_app` makes the application, which any ASGI server runs; ``devicekit serve`` runs it on uvicorn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devicekit.front_door import front_door

if TYPE_CHECKING:
    from devicekit.server.app import create_app
    from devicekit.server.settings import ServerSettings

__all__ = ["ServerSettings", "create_app"]

__getattr__, __dir__ = front_door(
    __name__,
    {"devicekit.server.app": ("create_app",), "devicekit.server.settings": ("ServerSettings",)},
    extra="serve",
)
