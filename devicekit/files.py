"""Reads files that others may write to, replace, or put something else in the place of.

Only regular files are opened: a pipe, a socket, a device or a directory is told as what it is, and nothing waits
for it. A file is read into memory of this process, whole or up to a limit, and `Stamp` tells whether it is still
the one that was read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devicekit.contract.errors import DeviceKitError

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_PART = 1 << 20  # bytes asked for at once where the size is not known beforehand


class UnreadableFile(DeviceKitError):
    """A file cannot be read, is no regular file, or is larger than it may be."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """Which content a file has, as far as its metadata tells. Two that are equal mean that nothing was written.

    The change time cannot be set by anybody, unlike the modification time, which copying tools restore.
    """

    device: int
    inode: int
    size: int
    modified: int  # nanoseconds
    changed: int  # nanoseconds

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @classmethod
    def at(cls, path: str | Path) -> Stamp:
        """Of the file that a path leads to now.

        Raises:
            UnreadableFile: it leads to no regular file.
        """
        try:
            status = os.stat(path)
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error
        _require_regular(path, status)
        return cls.of(status)


@contextmanager
def open_regular(path: str | Path) -> Iterator[int]:
    """A descriptor of a regular file, to read. Opening waits for nobody.

    Raises:
        UnreadableFile: it is none, or cannot be opened.
    """
    Stamp.at(path)  # before it is opened: opening a device may do something to it
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    try:
        _require_regular(path, os.fstat(descriptor))  # it may have been replaced in between
        yield descriptor
    finally:
        os.close(descriptor)


def read_regular(path: str | Path, limit: int) -> bytes:
    """The content of a small file.

    Args:
        limit: bytes that it may have.

    Raises:
        UnreadableFile: it is no regular file, larger than that, or cannot be read.
    """
    with open_regular(path) as descriptor:
        parts: list[bytes] = []
        size = 0
        while True:
            try:
                part = os.read(descriptor, min(_PART, limit + 1 - size))
            except OSError as error:
                raise _unreadable(path, error) from error
            size += len(part)
            if size > limit:
                raise UnreadableFile(f"{path} has more than the {limit} bytes that it may have.")
            if not part:
                return b"".join(parts)
            parts.append(part)


def _require_regular(path: str | Path, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    kind = next((name for test, name in _KINDS if test(status.st_mode)), "something else")
    raise UnreadableFile(f"{path} is {kind}, not a regular file.")


def _unreadable(path: str | Path, error: OSError | ValueError) -> UnreadableFile:
    if isinstance(error, OSError) and error.errno == errno.ENOENT:
        return UnreadableFile(f"There is no file {path}.")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UnreadableFile(f"{path} cannot be read: {reason}.")
