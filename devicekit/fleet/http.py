"""Engines over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

import httpx

from devicekit.contract.errors import ConfigurationError
from devicekit.contract.text import shown
from devicekit.fleet.endpoint import Answer, Unreachable

_USUAL = 30.0  # seconds
_GRACE = 1.0  # seconds, so that httpx says first what took so long
_LARGEST = 16 << 20  # bytes of an answer


class HttpEndpoint:
    """An engine at a URL. Close it at the end."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        """``url`` as ``http://host:port``; ``api_key`` is sent as a bearer token.

        Raises:
            ConfigurationError: this is no such URL.
        """
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, TypeError) as error:
            raise ConfigurationError(f"{shown(url)} is no URL of an engine: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.userinfo:
            raise ConfigurationError(
                f"{shown(url)} is no URL of an engine; one looks like http://10.0.0.5:30000"
            )
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.name = url.rstrip("/")
        # One connection for each call: what an engine says twice must not answer the next question.
        self._client = httpx.AsyncClient(
            base_url=self.name,
            headers=headers,
            timeout=_USUAL,
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
            follow_redirects=False,
        )

    async def call(
        self, path: str, body: Mapping[str, object] | None = None, *, timeout: float | None = None
    ) -> Answer:
        limit = _USUAL if timeout is None else timeout
        try:
            # As a whole: who answers a byte at a time has not answered either.
            status, content = await asyncio.wait_for(self._exchange(path, body, limit), limit + _GRACE)
            document = json.loads(content)
        except asyncio.TimeoutError as error:
            raise Unreachable(f"it has not answered in {limit:g} s") from error
        except httpx.HTTPError as error:
            raise Unreachable(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        except (ValueError, RecursionError) as error:
            raise Unreachable("it answered with what is no JSON") from error
        if not isinstance(document, dict):
            raise Unreachable(f"it answered {status} with JSON that is no object")
        return Answer(status, document)

    async def _exchange(
        self, path: str, body: Mapping[str, object] | None, limit: float
    ) -> tuple[int, bytes]:
        if body is None:
            request = self._client.build_request("GET", path, timeout=limit)
        else:
            request = self._client.build_request("POST", path, json=dict(body), timeout=limit)
        response = await self._client.send(request, stream=True)
        try:
            return response.status_code, await _content(response)
        finally:
            await response.aclose()

    async def close(self) -> None:
        """End its connections."""
        await self._client.aclose()


async def _content(response: httpx.Response) -> bytes:
    content = bytearray()
    async for part in response.aiter_bytes():
        content += part
        if len(content) > _LARGEST:
            raise Unreachable(f"it answered {response.status_code} with more than {_LARGEST} bytes")
    return bytes(content)
