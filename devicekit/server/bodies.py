"""Reads the bodies of requests: each bounded in bytes and in what it makes of memory, and all of them together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

from devicekit.documents import UnreadableDocument, parse_sent
from devicekit.server.errors import BadRequest, BodyTooLarge, ClientGone, NotJson, Overloaded

# Bytes: bodies up to this size have room of their own, so that long ones cannot shut out all others.
_SMALL = 64 << 10
_SMALL_TOGETHER = 64 << 20
_DIGITS = 20  # of a length, more than any has
MOST_VALUES = 4_000_000
"""Numbers, texts and whatever else a body may hold: in memory each takes up to ten times what it took there."""
MOST_CONTAINERS = 200_000
"""Lists and objects among them, each of which takes up to a hundred times what it took in the body."""

_JSON_KIND = re.compile(r"application/[a-z0-9.-]+\+json")
# Matches from any quote on, so that it never goes back.
_TEXTS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)


class Bodies:
    """What the bodies of all requests take that are being read or worked on.

    Args:
        most: bytes, for one body.
        together: bytes, for all of them.
    """

    def __init__(self, most: int, together: int) -> None:
        self.most = most
        self._large, self._small = _Room(together), _Room(_SMALL_TOGETHER)

    @contextmanager
    def reading(self) -> Iterator[Body]:
        """Read a body, and have its room set aside for as long as it is worked on."""
        body = Body(self.most, self._small, self._large)
        try:
            yield body
        finally:
            body.room.give_back(body.size)


class Body:
    """One body that is coming in."""

    def __init__(self, most: int, small: _Room, large: _Room) -> None:
        self._most, self._large = most, large
        self.room, self.size = small, 0

    async def read(self, request: Request) -> bytes:
        """All of it.

        Raises:
            BodyTooLarge: it is longer than this server reads.
            Overloaded: there is no room for it beside the others.
            NotJson: it says that it is something else, or packed.
            ClientGone: the client went away.
        """
        coded = ", ".join(request.headers.getlist("content-encoding"))
        if coded.strip().lower() not in ("", "identity"):
            raise NotJson(
                f"This server reads bodies as they are, and this one says that it is {coded[:100]}."
            )
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:_DIGITS]) > self._most:
            raise BodyTooLarge(f"The body has {announced:.{_DIGITS}} bytes; this server reads {self._most}.")
        parts: list[bytes] = []
        try:
            async for part in request.stream():
                self._take(len(part))
                parts.append(part)
        except ClientDisconnect as error:
            raise ClientGone("The client went away.") from error
        content = b"".join(parts)
        if content.strip() and not _may_be_json(request.headers.getlist("content-type")):
            raise NotJson("This endpoint reads JSON: send it with Content-Type: application/json.")
        return content

    def _take(self, count: int) -> None:
        size = self.size + count
        if size > self._most:
            raise BodyTooLarge(f"The body has more than {self._most} bytes.")
        if size > _SMALL and self.room is not self._large:
            self._large.take(size)
            self.room.give_back(self.size)
            self.room = self._large
        else:
            self.room.take(count)
        self.size = size


class _Room:
    def __init__(self, size: int) -> None:
        self._free = size

    def take(self, count: int) -> None:
        if count > self._free:
            raise Overloaded("This server is reading as much as it takes at once.")
        self._free -= count

    def give_back(self, count: int) -> None:
        self._free += count


def parse(body: bytes) -> dict[str, object]:
    """The JSON object in a body; an absent body is an empty object.

    Raises:
        BadRequest: it is none, or has more in it than this server reads.
    """
    if not body.strip():
        return {}
    _require_few(body)
    try:
        return parse_sent(body)
    except UnreadableDocument as error:
        raise BadRequest(f"The body is not JSON that can be read: {error}") from error


def _require_few(body: bytes) -> None:
    """Refuse what would take much more memory than the body itself, before any of it is taken."""
    # Perhaps it is only that its texts have many commas and brackets.
    if _too_many(body) and (problem := _too_many(_TEXTS.sub(b"", body))):
        raise BadRequest(problem)


def _too_many(text: bytes) -> str:
    """What there is too much of; empty: nothing."""
    containers = text.count(b"[") + text.count(b"{")
    values = text.count(b",") + containers
    if values > MOST_VALUES:
        return f"The body holds {values} values; this server reads {MOST_VALUES}."
    if containers > MOST_CONTAINERS:
        return f"The body holds {containers} lists and objects; this server reads {MOST_CONTAINERS}."
    return ""


def _may_be_json(types: list[str]) -> bool:
    """Whether no header says that a body is anything else. Forms of web pages always say what they are."""
    for one in types:
        kind = one.partition(";")[0].strip().lower()
        if kind not in ("application/json", "text/json") and not _JSON_KIND.fullmatch(kind):
            return False
    return True
