"""Stands before a replica: requests that steer engines go to the fleet, and all others to the engine."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from devicekit.contract.errors import DeviceKitError
from devicekit.server.app import ENDPOINTS
from devicekit.server.errors import error_response
from devicekit.server.keys import Access
from devicekit.server.serving import Serving

_OF_ALL = frozenset({"/ready", "/metrics", "/list_workers"})  # of one replica they would mislead
_STEERING = frozenset(
    path for one in ENDPOINTS if one.access is Access.CONTROL for path in (one.path, *one.aliases)
)
_LARGEST = 1 << 20  # bytes of a verb's body, as the fleet reads it


class Front:
    """The application that Ray's proxies speak to."""

    def __init__(self, app: Starlette, steward: Any) -> None:
        """``steward``: handle of the deployment that steers."""
        self._app = app
        self._steward = steward

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # the engine's runs with the replica's own port
            await _no_lifespan(receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if scope["type"] == "http" and (path in _STEERING or path in _OF_ALL or path.startswith("/fleet/")):
            request = Request(scope, receive)
            try:
                if path != "/ready":  # probes carry no keys
                    self._let_in(request)
                response = await self._steer(request, path)
            except DeviceKitError as error:
                response = error_response(error, verb=True)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _let_in(self, request: Request) -> None:
        """Check as every replica does: no web page steers, and no caller without the key."""
        serving: Serving = self._app.state.serving
        serving.origins.require_own_page(request.headers, steering=True, navigable=False)
        if request.method == "GET":
            serving.origins.require_no_page(request.headers)
        if not serving.keys.check(Access.CONTROL, request.headers):
            serving.origins.require_own_host(request.headers)

    async def _steer(self, request: Request, path: str) -> Response:
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > _LARGEST:
                message = f"A verb over all replicas has a body of at most {_LARGEST} bytes."
                return JSONResponse({"success": False, "message": message}, 413)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name in ("authorization", "content-type")
        }
        own = path.removeprefix("/fleet") if path in ("/fleet/status", "/fleet/metrics") else path
        query = request.scope["query_string"].decode("latin-1")
        target = f"{own}?{query}" if query else own
        status, kind, body = await self._steward.answer.remote(
            request.method, target, headers, bytes(content)
        )
        return Response(body, status, media_type=kind)


async def _no_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
