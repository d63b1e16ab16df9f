"""Engines over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx

from devicekit.documents import UnreadableDocument, parse_sent
from devicekit.fleet.endpoint import Answer, Unreachable
from devicekit.fleet.exchange import UnusableAnswer, client, exchange, peer_url

_USUAL = 30.0  # seconds
_GRACE = 1.0  # seconds, so that httpx says first what took so long


class HttpEndpoint:
    """An engine at a URL. Close it at the end."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        """``url`` as ``http://host:port``; ``api_key`` is sent as a bearer token.

        Raises:
            ConfigurationError: this is no such URL.
        """
        self.name = peer_url(url, "an engine")
        self._client = client({} if api_key is None else {"Authorization": f"Bearer {api_key}"}, _USUAL)

    async def call(
        self, path: str, body: Mapping[str, object] | None = None, *, timeout: float | None = None
    ) -> Answer:
        limit = _USUAL if timeout is None else timeout
        try:
            # As a whole: who answers a byte at a time has not answered either.
            status, content = await asyncio.wait_for(self._exchange(path, body, limit), limit + _GRACE)
            return Answer(status, parse_sent(content))
        except asyncio.TimeoutError as error:
            raise Unreachable(f"it has not answered in {limit:g} s") from error
        except httpx.HTTPError as error:
            raise Unreachable(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        except UnusableAnswer as error:
            raise Unreachable(str(error)) from error
        except UnreadableDocument as error:
            raise Unreachable(
                f"it answered {status} with what is no JSON that can be read: {error}"
            ) from error

    async def _exchange(
        self, path: str, body: Mapping[str, object] | None, limit: float
    ) -> tuple[int, bytes]:
        url = self.name + path
        if body is None:
            request = self._client.build_request("GET", url, timeout=limit)
        else:
            request = self._client.build_request("POST", url, json=dict(body), timeout=limit)
        return await exchange(self._client, request)

    async def close(self) -> None:
        """End its connections."""
        await self._client.aclose()
