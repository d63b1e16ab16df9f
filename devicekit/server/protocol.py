"""HTTP on a connection, with limits on what is sent before a request is whole, and on how long each part takes."""

from __future__ import annotations

import asyncio
import itertools
import re
import resource

from devicekit.server.errors import error_body
from devicekit.server.half_closed import Lookout
from devicekit.server.in_turn import InTurnProtocol
from devicekit.server.offers import OfferlessParser

_MOST = 64 << 10  # bytes of a request's line and headers, give or take what is read at once
_FRAMING = 8  # bytes that may come with each of a body's: a chunk of one byte has five
_SECONDS = 30.0  # for these; and for a body, beside what its length takes
_SLOWEST = 16 << 10  # bytes a second in which a body has to come
_WRITE_SECONDS = 30.0  # in which a client has to take what waits to be sent to it, 64 kB
_MOST_CONNECTIONS = 16_384
_RESERVED = 640  # files: the engine's own, and connections that come at once
_HOST = re.compile(rb"([A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.%A-Za-z_~-]+\])?(:[0-9]{0,5})?")
_LOOKED_AT = 128  # connections, of which one is to go


def raise_file_limit() -> None:
    """Let this process open as many files as it may, within reason: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_CONNECTIONS + _RESERVED
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def most_connections() -> int:
    """How many connections there may be at once, so that files remain for everything else."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        _MOST_CONNECTIONS
        if soft == resource.RLIM_INFINITY
        else max(64, min(soft - _RESERVED, _MOST_CONNECTIONS))
    )


class _Wrong(ValueError):
    """What is wrong with the headers of a request."""


class BoundedProtocol(InTurnProtocol):
    """A connection whose client must finish its request in time. Waiting between requests is allowed."""

    _before_body = True  # the line and headers of a request are on their way
    _in_body = False
    _size = 0  # of these; then of the body
    _framed = 0  # bytes of a body with what is around it
    _body_began = 0.0
    _heard = 0.0  # when the client last sent something
    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _lookout: Lookout | None = None  # once the client has closed its side
    _problem = ""  # what is wrong with what was sent, where it is known

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.parser = OfferlessParser(self)  # type: ignore[assignment]  # what uvicorn asks of one it answers
        self._heard = self.loop.time()
        self._expect("the headers")
        if len(self.connections) > most_connections():
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._relax()
        self._written()
        if self._lookout is not None:
            self._lookout.cancel()
        super().connection_lost(exc)

    def stays_open(self) -> bool:
        """Answer whole requests, although nothing more will come."""
        one = self.cycle
        asked = one is not None and not (self._before_body or self._in_body or one.response_complete)
        # HTTP/1.0 has nothing that could be sent to find out whether anybody reads; proxies that speak it hang up.
        if not asked or one.scope["http_version"] != "1.1":
            return False
        one.keep_alive = False
        if self._lookout is None:
            self._lookout = Lookout(self.loop, lambda: self.running)
        return True

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        super().data_received(data)

    def understand(self, data: bytes) -> None:
        within = self._in_body
        super().understand(data)
        if self._in_body and within:
            self._framed += len(data)
            if self._framed > _MOST + (1 + _FRAMING) * self._size:
                self._refuse(431, "There is too much around the body: extensions of chunks, or trailers.")
        if self._before_body:
            self._size += len(data)
            if self._size > _MOST:
                self._refuse(431, f"The headers have more than {_MOST} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._before_body, self._size = True, 0
        self._expect("the headers")

    def on_header(self, name: bytes, value: bytes) -> None:
        # What comes behind a body is no header: nobody looked at it on the way here.
        if self._before_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._require_sound_headers()
        self._before_body, self._in_body, self._size, self._framed = False, True, 0, 0
        self._body_began = self.loop.time()
        self._expect("the body")
        super().on_headers_complete()

    def _require_sound_headers(self) -> None:
        """As RFC 9112 asks (3.2, 6.1): who stands in between may have understood such a request in another way."""
        version = self.parser.get_http_version()
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (version == "1.1" and not hosts) or not all(map(_HOST.fullmatch, hosts)):
            self._problem = (
                "A request has one Host header, which says a name or an address, and perhaps a port."
            )
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if codings and (version == "1.0" or [one.strip().lower() for one in codings] != [b"chunked"]):
            self._problem = "The only Transfer-Encoding here is chunked, of HTTP/1.1."
        if self._problem:
            raise _Wrong(self._problem)  # httptools stops, and uvicorn has it refused

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, self._problem or msg)

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        self._expect("the body", self._body_began + self._size / _SLOWEST)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._relax()
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        self._written()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect_reading()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._expect_reading()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._expect_reading()

    def _make_room(self) -> None:
        """Of some connections that wait for a client, close the one that has waited longest, else this one."""
        others = (one for one in self.connections if one is not self and isinstance(one, BoundedProtocol))
        waited_for = [one for one in itertools.islice(others, _LOOKED_AT) if one._is_waited_for()]
        longest = min(waited_for, key=lambda one: one._heard, default=self)
        longest.transport.abort()
        # Now, not when the event loop tells us: other connections may come before that.
        self.connections.discard(longest)

    def _is_waited_for(self) -> bool:
        """Whether it is the client's turn: to send, to read, or to ask again."""
        idle = self.cycle is None or self.cycle.response_complete
        owing = self._timer is not None and not self._owes_an_answer()
        return idle or owing or self._write_timer is not None

    def _expect_reading(self) -> None:
        """Demand that the client reads in time. A closed connection stays until it has."""
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(_WRITE_SECONDS, self.transport.abort)

    def _written(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _unsupported_upgrade_warning(self) -> None:
        """There are no tunnels here, and no web sockets: uvicorn would advise to install some."""

    def _expect(self, what: str, since: float | None = None) -> None:
        self._relax()
        begin = self.loop.time() if since is None else since
        self._timer = self.loop.call_at(begin + _SECONDS, self._overdue, what)

    def _overdue(self, what: str) -> None:
        if self._owes_an_answer():
            self._expect(what)  # it is our turn, not theirs
        else:
            self._refuse(408, f"Waited {_SECONDS:g} s for {what}.")

    def _owes_an_answer(self) -> bool:
        """Whether an earlier request of this connection is being worked on, or nothing is read for now."""
        if self.flow.read_paused:
            return True
        if self._before_body:
            return self.cycle is not None and not self.cycle.response_complete
        return bool(self.pipeline)

    def _relax(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, message: str) -> None:
        """Send the reason, unless an answer is under way, and close the connection."""
        self._relax()
        if self.transport.is_closing():
            return
        one = self.running
        # Of a request whose body is still coming the answer may not have begun.
        begun = self._in_body and one is self.cycle and not (one and one.response_started)
        if one is None or one.response_complete or begun:
            response = error_body(status, message, "invalid_request_error")
            headers = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
            head = b"HTTP/1.1 %d Refused\r\n%sconnection: close\r\n\r\n" % (status, headers)
            self.transport.write(head + bytes(response.body))
        self.transport.close()
        self._expect_reading()
