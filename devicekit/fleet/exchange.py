"""One exchange with whoever is at a URL. Nothing that comes back is trusted: its size, its coding, its form."""

from __future__ import annotations

import functools
import ipaddress
import ssl
from collections.abc import Mapping

import httpx

from devicekit.contract.errors import ConfigurationError
from devicekit.contract.text import shown

_LARGEST = 16 << 20  # bytes of an answer
_LONGEST_URL = 500  # characters
_USUAL_PORTS = {"http": 80, "https": 443}


class UnusableAnswer(ValueError):
    """An answer is larger than any of use, or packed, so that its size is not known before it is unpacked."""


def peer_url(text: str, what: str) -> str:
    """A URL of ``http://host:port`` in the one form that each has: two of them are equal, or lead elsewhere.

    Args:
        what: it should lead to, for the error, which does not repeat a password.

    Raises:
        ConfigurationError: it is none, or has more in it.
    """
    try:
        parsed = httpx.URL(text)
        port = parsed.port
    # Of whatever is no URL httpx raises errors of several kinds.
    except (httpx.InvalidURL, TypeError, ValueError, OverflowError) as error:
        raise ConfigurationError(f"{shown(text)} is no URL of {what}: {shown(str(error))}") from error
    if parsed.userinfo:
        raise ConfigurationError(
            f"What leads to {shown(parsed.host)} is no URL of {what}: it has a user or a password in it, and "
            "a key is given in a file."
        )
    # A query is one also where it is empty: what is appended to it goes nowhere.
    more = len(text) > _LONGEST_URL or not text.isprintable() or any(sign in text for sign in "?# ")
    sound = parsed.scheme in ("http", "https") and parsed.host and (port is None or 0 < port < 65536)
    if more or not sound:
        raise ConfigurationError(f"{shown(text)} is no URL of {what}; one looks like http://10.0.0.5:30000")
    address = f"[{_compressed(parsed.host)}]" if ":" in parsed.host else parsed.raw_host.decode("ascii")
    shown_port = "" if port is None or port == _USUAL_PORTS[parsed.scheme] else f":{port}"
    return f"{parsed.scheme}://{address}{shown_port}{parsed.raw_path.decode('ascii')}".rstrip("/")


def _compressed(address: str) -> str:
    """An IPv6 address in its shortest form."""
    return ipaddress.IPv6Address(address).compressed


def client(headers: Mapping[str, str], timeout: float) -> httpx.AsyncClient:
    """A client that follows nobody elsewhere, with a connection of its own for each exchange.

    What an engine says twice must not answer the next question.
    """
    return httpx.AsyncClient(
        headers=httpx.Headers(
            {"Accept-Encoding": "identity", **headers}, encoding="utf-8"
        ),  # keys of any letters
        timeout=timeout,
        limits=httpx.Limits(max_keepalive_connections=0),
        trust_env=False,
        follow_redirects=False,
        verify=_certificates(),
    )


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Who is trusted. It takes 10 ms to read, and a fleet may have a thousand engines."""
    return httpx.create_ssl_context(trust_env=False)


async def exchange(asking: httpx.AsyncClient, request: httpx.Request) -> tuple[int, bytes]:
    """Send a request: the status and the body of its answer.

    Raises:
        UnusableAnswer: the body is too large, or packed.
        httpx.HTTPError: no answer came.
    """
    response = await asking.send(request, stream=True)
    try:
        if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise UnusableAnswer(f"it answered {response.status_code} with a body that is packed")
        content = bytearray()
        async for part in response.aiter_raw():
            content += part
            if len(content) > _LARGEST:
                raise UnusableAnswer(f"it answered {response.status_code} with more than {_LARGEST} bytes")
        return response.status_code, bytes(content)
    finally:
        await response.aclose()
