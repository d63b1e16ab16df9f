"""Keeps web pages from steering a server through the browser of somebody who can reach it.

A browser sends what a page asks for to any address, this machine's own among them. Pages are told by what
browsers say of them (``Origin``, ``Sec-Fetch-Site``, ``Referer``), and those whose name was made to lead here (DNS
rebinding) by the ``Host`` that they were asked under. Programs are not concerned: they say none of this, and name
the server by its address or by a name that only its own network gives.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from devicekit.contract.text import shown
from devicekit.server.errors import Forbidden

ANY_ORIGIN = "*"

_OWN_PAGE = ("same-origin", "none")  # "none": typed in, or from a bookmark
# Names that no public name server answers for, so that nobody outside can make them lead here.
_PRIVATE = (".localhost", ".local", ".internal", ".lan", ".home.arpa", ".localdomain", ".intranet", ".svc")
_PORTS = {"http": "80", "https": "443"}


class Origins:
    """The names that a server has, and the web pages that may call it.

    Args:
        host: the address that it listens on.
        allowed_hosts: further names that it is reached by; ``*`` for any.
        allowed_origins: pages of other origins that may call it, as ``https://host:port``; ``*`` for any, which
            opens generation to them and control not.
    """

    def __init__(
        self, host: str, allowed_hosts: Collection[str] = (), allowed_origins: Collection[str] = ()
    ) -> None:
        self._local = is_loopback(host)
        self._hosts = {_bare(one) for one in (*allowed_hosts, host)}
        if not self._local:
            self._hosts |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        self._any_host = ANY_ORIGIN in allowed_hosts
        self._origins = {_origin(one) for one in allowed_origins if one != ANY_ORIGIN}
        self._any_origin = ANY_ORIGIN in allowed_origins

    def require_own_host(self, headers: Headers) -> None:
        """Refuse a request that was meant for another name.

        Raises:
            Forbidden: its ``Host`` is none of this server's names.
        """
        given = headers.getlist("host")
        if len(given) > 1:
            raise Forbidden("A request has one Host header, not several.")
        # Browsers always send it.
        if given and not self.is_own_host(given[0]):
            raise Forbidden(
                f"This server is not known by the name {given[0]!r:.100}. If it is one of its names, tell it so "
                "with --allowed-host; or set a key, and send it."
            )

    def is_own_host(self, host: str) -> bool:
        """Whether a ``Host`` header names this server, or names nobody else."""
        name = _bare(host)
        if self._any_host or name in self._hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        if _address(name) is not None:  # no name server was asked
            return True
        # Names without a dot, and these, are given by the local network. It is no friend of a server that listens
        # on this machine only, and can call any other without a browser's help.
        return not self._local and bool(name) and ("." not in name or name.endswith(_PRIVATE))

    def require_own_page(self, headers: Headers, *, steering: bool, navigable: bool = False) -> None:
        """Refuse a request that a page of another origin makes.

        Args:
            steering: whether it is for more than generating.
            navigable: whether it may be where a link of such a page leads.

        Raises:
            Forbidden: it does.
        """
        allowed = self._any_origin and not steering
        for origin in headers.getlist("origin"):
            if not (allowed or _origin(origin) in self._origins or self._same(origin, headers)):
                raise Forbidden(f"Web pages of {origin!r:.100} may not call this server (--allowed-origin).")
        if headers.get("origin") is not None and (allowed or _origin(headers["origin"]) in self._origins):
            return
        if navigable and headers.get("sec-fetch-mode") == "navigate":
            return
        if not all(site in _OWN_PAGE for site in headers.getlist("sec-fetch-site")):
            raise Forbidden("This server takes no requests from web pages of another origin.")

    def require_no_page(self, headers: Headers) -> None:
        """Refuse a GET that changes something and that a browser makes for anybody but this server's own page.

        Links, images and typed addresses are GETs. Over plain HTTP a browser does not say whose; but it says that
        it is one.

        Raises:
            Forbidden: it does.
        """
        if headers.get("sec-fetch-site") == "same-origin":
            return
        referer = headers.get("referer")
        if referer is not None and self._same(referer, headers):
            return
        if (
            referer is not None
            or "sec-fetch-site" in headers
            or "mozilla/" in headers.get("user-agent", "").lower()
        ):
            raise Forbidden("A browser steers this server by POST only: a link or an image must not.")

    def _same(self, origin: str, headers: Headers) -> bool:
        host = headers.get("host")
        try:
            parts = urlsplit(origin.strip().lower())
            default = _PORTS.get(parts.scheme)
            if default is None or host is None or not parts.hostname:
                return False
            own = urlsplit(f"//{host.strip().lower()}")
            ports = str(parts.port or default), str(own.port or default)
        except ValueError:
            return False
        return parts.hostname == own.hostname and ports[0] == ports[1]


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    address = _address(_bare(host))
    return address.is_loopback if address is not None else _bare(host) == "localhost"


def wrong_origins(origins: Sequence[str]) -> list[str]:
    """What is wrong with origins that were given as settings."""
    return [
        f"{shown(one)} is no origin: write it as https://name or http://name:port"
        for one in origins
        if one != ANY_ORIGIN and _origin(one) is None
    ]


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return None


def _bare(host: str) -> str:
    """A host without its port, brackets, and the dot that may end a name."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    if name.count(":") == 1:
        name = name.partition(":")[0]
    return name.removesuffix(".")


def _origin(text: str) -> tuple[str, str, str] | None:
    """Scheme, name and port; ``None`` for what is no origin of the web."""
    try:
        parts = urlsplit(text.strip().lower())
        port = str(parts.port or _PORTS.get(parts.scheme, ""))
    except ValueError:
        return None
    whole = f"{parts.scheme}://{parts.netloc}"
    if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc:
        return None
    return (parts.scheme, parts.hostname, port) if text.strip().lower() == whole else None
