"""The fleet of an application, as a deployment of which there is one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import httpx

from devicekit.fleet import Endpoint, Fleet, open_record
from devicekit.fleet.app import create_fleet_app
from devicekit.fleet.http import HttpEndpoint
from devicekit.fleet.keeper import Keeper
from devicekit.ray_serve.arguments import Arguments
from devicekit.ray_serve.keys import read_keys
from devicekit.ray_serve.registry import Registry

_LOOK = 0.2  # seconds between two looks at whether a replica generates


class Steward:
    """Steers every replica, and brings the fleet's weights to each before it is ready."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        """``arguments``: as of `Arguments`.

        Raises:
            FleetBusy: another process holds the fleet's file.
            ConfigurationError: the file is no fleet's, or a key cannot be read.
        """
        given = Arguments.model_validate(arguments)
        keys = read_keys(given)
        key = keys.admin or keys.user
        self._closing = contextlib.ExitStack()
        record = self._closing.enter_context(open_record(given.fleet_file, sourced=True))
        self._registry = Registry(record.record.members)

        def connect(url: str) -> Endpoint:
            return HttpEndpoint(url, api_key=key)

        self._fleet = Fleet(
            [connect(url) for url in record.record.members],
            record,
            source=self._registry,
            connect=connect,
            keep_claims=True,
        )
        app = create_fleet_app(self._fleet, api_key=key)
        self._http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://fleet", timeout=None
        )
        keeper = Keeper(self._fleet, every=given.tend_every, adopt=True)
        self._keeping = asyncio.ensure_future(keeper.run())

    async def heard(self, url: str, actor: Any) -> None:
        """Called by a replica that is there."""
        self._registry.heard(url, actor)

    async def left(self, url: str) -> None:
        """Called by a replica that ends."""
        self._registry.left(url)

    async def joined(self, url: str) -> None:
        """Return once a replica has the fleet's weights and generates."""
        while True:
            for endpoint in self._fleet.endpoints:
                if endpoint.name == url:
                    view = await self._fleet.view(endpoint)
                    if view.awaits_fleet is False:
                        return
            await asyncio.sleep(_LOOK)

    async def answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, str, bytes]:
        """The fleet's answer to a request that came to one of the replicas: status, type and content."""
        response = await self._http.request(method, path, headers=dict(headers), content=body)
        return (
            response.status_code,
            response.headers.get("content-type", "application/json"),
            response.content,
        )

    async def check_health(self) -> None:
        """Called by Ray: raise if the fleet is no longer looked after."""
        if self._keeping.done():
            raise RuntimeError(f"The fleet's keeper ended: {self._keeping}")

    async def __del__(self) -> None:
        self._keeping.cancel()
        with contextlib.suppress(Exception):
            await self._fleet.close()
        self._closing.close()
