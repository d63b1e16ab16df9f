"""Where a fleet learns which engines it has, for instance from the DNS of a headless service."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from devicekit.contract.errors import ConfigurationError
from devicekit.contract.text import shown
from devicekit.fleet.errors import UnknownMembers
from devicekit.ranges import whole

_TIMEOUT = 30.0  # seconds


class MemberSource(Protocol):
    """Says which engines there are now."""

    async def members(self) -> tuple[str, ...]:
        """Their URLs, sorted, each once, at least one.

        Raises:
            UnknownMembers: the source does not answer, or names none.
        """
        ...


class DnsMembers:
    """Every address of a name, as of a headless service in Kubernetes. It is resolved anew each time."""

    def __init__(self, host: str, port: int) -> None:
        whole("port", port, least=1, most=65535)
        self._host, self._port = host, port

    @classmethod
    def parse(cls, text: str) -> DnsMembers:
        """From ``name:port``.

        Raises:
            ConfigurationError: it is something else.
        """
        host, separator, port = text.rpartition(":")
        if not separator or not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigurationError(
                f"{shown(text)} is no name and port; such a text looks like engines.default:30000"
            )
        return cls(host, int(port))

    async def members(self) -> tuple[str, ...]:
        loop = asyncio.get_running_loop()
        asking = loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.wait_for(asking, _TIMEOUT)
        except asyncio.TimeoutError as error:
            raise UnknownMembers(f"The name {self._host} was not resolved within {_TIMEOUT:g} s.") from error
        except (OSError, UnicodeError) as error:
            raise UnknownMembers(f"The name {self._host} cannot be resolved: {error}") from error
        addresses = {str(address[0]) for _, _, _, _, address in found}
        if not addresses:
            raise UnknownMembers(f"The name {self._host} has no address.")
        return tuple(sorted(self._url(one) for one in addresses))

    def _url(self, address: str) -> str:
        shown = f"[{address}]" if ":" in address else address
        return f"http://{shown}:{self._port}"
