"""The engines of a fleet as a gateway lists them: sglang-router, smg, and what answers as they do."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx

from devicekit.contract.errors import ConfigurationError
from devicekit.contract.text import counted
from devicekit.documents import UnreadableDocument, parse_sent
from devicekit.fleet.errors import UnknownMembers
from devicekit.fleet.exchange import UnusableAnswer, client, exchange, peer_url

_TIMEOUT = 30.0  # seconds
_MOST = 10_000  # engines
_PATHS = ("/workers", "/list_workers")  # in this order: gateways have the one, or both, or the other


class GatewayMembers:
    """The workers that a gateway sends requests to."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        """``url`` of the gateway; ``api_key`` is sent to it as a bearer token.

        Raises:
            ConfigurationError: this is no URL.
        """
        self._url = peer_url(url, "a gateway")
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}

    async def members(self) -> tuple[str, ...]:
        problem = "it lists no workers"
        async with client(self._headers, _TIMEOUT) as asking:
            for path in _PATHS:
                try:
                    request = asking.build_request("GET", self._url + path)
                    status, content = await asyncio.wait_for(exchange(asking, request), _TIMEOUT)
                    if status == 200:
                        if found := _workers(parse_sent(content)):
                            return tuple(sorted(found))
                    elif status != 404:
                        problem = f"{path} was answered with status {status}"
                except asyncio.TimeoutError:
                    problem = f"{path} was not answered within {_TIMEOUT:g} s"
                except UnreadableDocument as error:
                    problem = f"{path} was answered with what is no JSON that can be read: {error}"
                except (ConfigurationError, UnusableAnswer, TypeError) as error:
                    problem = f"{path}: {str(error)[:200]}"
                except httpx.HTTPError as error:
                    problem = f"{path}: {type(error).__name__}: {str(error)[:200]}".rstrip(": ")
        raise UnknownMembers(f"The gateway {self._url} does not say which engines there are: {problem}.")


def _workers(document: Mapping[str, object]) -> set[str]:
    """URLs in ``{"workers": [{"url": …}]}`` or ``{"urls": […]}``.

    Raises:
        TypeError: it is neither, or too long.
        ConfigurationError: it lists what is no URL of an engine.
    """
    listed = document.get("urls")
    if listed is None:
        workers = document.get("workers") or []
        if not isinstance(workers, list):
            raise TypeError("workers is no list")
        listed = [one.get("url") if isinstance(one, Mapping) else one for one in workers]
    if not isinstance(listed, list) or any(not isinstance(one, str) for one in listed):
        raise TypeError("it answered a list of something else than URLs")
    if len(listed) > _MOST:
        raise TypeError(f"it lists {counted(len(listed), 'engine')}, and a fleet has at most {_MOST}")
    return {peer_url(one, "an engine") for one in listed}
