"""The conversation between the judge and a worker: whole messages, signed, from one known process.

A worker runs the backend's code beside the suite's, so nothing that comes out of it is believed for being there:
each message is a datagram with a keyed digest, the kernel names the process that sent it, and what the speaker
needs is bound before any backend is imported. It makes forging an answer more than writing to a descriptor or
patching a module. It cannot stop code that takes the interpreter apart; `integrity` looks for that.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

KEY_BYTES = 32
LARGEST = 128 * 1024  # bytes of one message
_DIGEST_BYTES = 16
_SEPARATOR = "\x1f"
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid, as the kernel writes them

Say = Callable[..., None]


class Forged(Exception):
    """Something reached the judge that the suite did not say."""


@dataclass(frozen=True)
class Message:
    """One message: the request it belongs to, what kind it is, and its fields."""

    number: int
    kind: str
    fields: tuple[str, ...]


def message_pair() -> tuple[socket.socket, socket.socket]:
    """The judge's end and the worker's end of a connection that keeps messages apart."""
    kind = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_DGRAM)
    try:
        mine, theirs = socket.socketpair(socket.AF_UNIX, kind)
    except OSError:  # a system that has no such kind
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    if hasattr(socket, "SO_PASSCRED"):
        with contextlib.suppress(OSError):
            mine.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return mine, theirs


def speaker(connection: socket.socket, key: bytes) -> Say:
    """A function that signs and sends; it keeps its own reference to all that it needs."""
    send, digest, join, limit = connection.send, hashlib.blake2b, _SEPARATOR.join, LARGEST - 1024

    def say(number: int, kind: str, *fields: str) -> None:
        body = join((f"{number}", kind, *fields)).encode("utf-8", "backslashreplace")[:limit]
        send(digest(body, key=key, digest_size=16).digest() + body)

    return say


def receive(connection: socket.socket, key: bytes, sender: int | None) -> Message | None:
    """The next message, or ``None`` where the other side has closed.

    Args:
        sender: the only process that may speak; ``None`` where it is not known yet.

    Raises:
        Forged: it is not signed, or another process sent it.
    """
    data, ancillary, _, _ = connection.recvmsg(LARGEST, socket.CMSG_SPACE(_CREDENTIALS.size))
    if not data:
        return None
    by = _sender_of(ancillary)
    signed, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if not hmac.compare_digest(signed, hashlib.blake2b(body, key=key, digest_size=_DIGEST_BYTES).digest()):
        raise Forged(f"wrote {len(data)} bytes that the suite did not sign into its answers")
    number, kind, *fields = body.decode("utf-8", "replace").split(_SEPARATOR)
    if kind != "note" and sender is not None and by not in (None, sender):
        raise Forged(f"went on running the suite in a second process ({by}), which answered too")
    return Message(int(number), kind, tuple(fields))


def _sender_of(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == getattr(socket, "SCM_CREDENTIALS", -1):
            return int(_CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0])
    return None
