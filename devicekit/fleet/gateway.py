"""The engines of a fleet as a gateway lists them: sglang-router, smg, and what answers as they do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

import httpx

from devicekit.contract.errors import ConfigurationError
from devicekit.contract.text import shown
from devicekit.fleet.errors import UnknownMembers

_TIMEOUT = 30.0  # seconds
_LARGEST = 16 << 20  # bytes of a list
_PATHS = ("/workers", "/list_workers")  # in this order: gateways have the one, or both, or the other


class GatewayMembers:
    """The workers that a gateway sends requests to."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        """``url`` of the gateway; ``api_key`` is sent to it as a bearer token.

        Raises:
            ConfigurationError: this is no URL.
        """
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, TypeError) as error:
            raise ConfigurationError(f"{shown(url)} is no URL of a gateway: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigurationError(
                f"{shown(url)} is no URL of a gateway; one looks like http://10.0.0.5:30000"
            )
        self._url = url.rstrip("/")
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}

    async def members(self) -> tuple[str, ...]:
        problem = "it lists no workers"
        async with httpx.AsyncClient(headers=self._headers, timeout=_TIMEOUT, trust_env=False) as client:
            for path in _PATHS:
                try:
                    status, content = await asyncio.wait_for(_read(client, self._url + path), _TIMEOUT)
                    if status == 200:
                        if found := _workers(json.loads(content)):
                            return tuple(sorted(found))
                    elif status != 404:
                        problem = f"{path} was answered with status {status}"
                except asyncio.TimeoutError:
                    problem = f"{path} was not answered within {_TIMEOUT:g} s"
                except (httpx.HTTPError, ValueError, RecursionError, TypeError) as error:
                    problem = f"{path}: {type(error).__name__}: {str(error)[:200]}".rstrip(": ")
        raise UnknownMembers(f"The gateway {self._url} does not say which engines there are: {problem}.")


async def _read(client: httpx.AsyncClient, url: str) -> tuple[int, bytes]:
    content = bytearray()
    async with client.stream("GET", url) as answer:
        async for part in answer.aiter_bytes():
            content += part
            if len(content) > _LARGEST:
                raise ValueError(f"more than {_LARGEST} bytes")
    return answer.status_code, bytes(content)


def _workers(document: object) -> set[str]:
    """URLs in ``{"workers": [{"url": …}]}`` or ``{"urls": […]}``.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(document, Mapping):
        raise TypeError("it answered what is no JSON object")
    listed = document.get("urls")
    if listed is None:
        listed = [
            one.get("url") if isinstance(one, Mapping) else one for one in document.get("workers") or ()
        ]
    if not isinstance(listed, list) or any(not isinstance(one, str) for one in listed):
        raise TypeError("it answered a list of something else than URLs")
    return {one.rstrip("/") for one in listed}
