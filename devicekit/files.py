"""Reads files that others may write to, replace, or put something else in the place of.

Only regular files are opened: a pipe, a socket, a device or a directory is told as what it is, and nothing waits
for it. Content is always read into memory of this process, never mapped: a mapping changes when the file does, and
ends the process when the file is cut short. `SteadyFile` reads a file that must not change meanwhile, and says so
if it did.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
READ_AT_ONCE = 8 << 20
"""Bytes that are asked of the system at once, at most, of a file whose size is known."""


# A file that was changed no longer ago than this may be changing still without its times telling: they are as
# coarse as the system's tick, and whoever writes through a mapping is noted only when the system writes back.
_FRESH = 60.0  # seconds

# Linux's way to ask whether anybody has a file open for writing; the standard library names neither of both.
_SETLEASE, _SETSIG = 1024, 10


class UnreadableFile(DeviceKitError):
    """A file cannot be read, is no regular file, or is larger than it may be."""


class ChangingFile(UnreadableFile):
    """A file was written to, or replaced, while it was read."""


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
def open_regular(path: str | Path, within: Sequence[str] = ()) -> Iterator[int]:
    """A descriptor of a regular file, to read. Opening waits for nobody.

    Args:
        path: of the file, or of a link to it.
        within: directories, without links in their paths, of which one has to hold the file; none: it may lie
            anywhere.

    Raises:
        UnreadableFile: it is none, cannot be opened, or lies elsewhere.
    """
    Stamp.at(path)  # before it is opened: opening a device may do something to it
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    try:
        status = os.fstat(descriptor)
        _require_regular(path, status)  # it may have been replaced in between
        if within:
            _require_within(path, status, within)
        yield descriptor
    finally:
        os.close(descriptor)


class SteadyFile:
    """A regular file, open, from which any part is read, and which `require_unchanged` vouches for.

    Args:
        path: of the file.
        stamp: what it must be; ``None``: whatever it is now.

    Raises:
        ChangingFile: it is another one, or somebody has it open for writing.
        UnreadableFile: it cannot be read.
    """

    def __init__(self, path: str | Path, descriptor: int, stamp: Stamp | None = None) -> None:
        self.path = path
        self._descriptor = descriptor
        self.stamp = Stamp.of(os.fstat(descriptor))
        if stamp not in (None, self.stamp):
            raise ChangingFile(f"{path} was written to or replaced while it was read.")
        self._require_no_writer()

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stamp.size

    @property
    def needs_second_reading(self) -> bool:
        """Whether the file's times do not tell if it changed: then its content has to be read again, and compared.

        They do on a file that has been left alone for a minute, unless it lies in memory alone.
        """
        age = time.time() - self.stamp.changed / 1e9
        return not age > _FRESH or _in_memory(self.stamp.device)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from the byte at ``offset`` on.

        Raises:
            ChangingFile: the file ends before.
            UnreadableFile: reading failed.
        """
        while buffer:
            part = min(len(buffer), READ_AT_ONCE)
            try:
                os.lseek(self._descriptor, offset, os.SEEK_SET)
                count = os.readv(self._descriptor, [buffer[:part]])
            except OSError as error:
                raise _unreadable(self.path, error) from error
            if count == 0:
                raise ChangingFile(f"{self.path} was cut short while it was read.")
            buffer, offset = buffer[count:], offset + count

    def read(self, size: int, offset: int) -> bytes:
        """``size`` bytes from ``offset`` on. Raises as `read_into`."""
        content = bytearray(size)
        self.read_into(memoryview(content), offset)
        return bytes(content)

    def require_same(self, buffer: memoryview, offset: int) -> None:
        """Read again what ``buffer`` was filled with, and compare.

        Raises:
            ChangingFile: it is not the same any more.
        """
        again = memoryview(bytearray(min(len(buffer), READ_AT_ONCE)))
        for at in range(0, len(buffer), READ_AT_ONCE):
            part = buffer[at : at + READ_AT_ONCE]
            self.read_into(again[: len(part)], offset + at)
            if bytes(again[: len(part)]) != bytes(part):
                raise ChangingFile(f"{self.path} was written to while it was read.")

    def require_unchanged(self) -> None:
        """Raise `ChangingFile` unless the file is the one that was opened, as it was, and still where it was."""
        self._require_no_writer()
        if Stamp.of(os.fstat(self._descriptor)) != self.stamp or Stamp.at(self.path) != self.stamp:
            raise ChangingFile(f"{self.path} was written to or replaced while it was read.")

    def _require_no_writer(self) -> None:
        if _open_for_writing(self._descriptor):
            raise ChangingFile(f"{self.path} is open for writing: whoever writes it has to finish first.")


@contextmanager
def open_steady(
    path: str | Path, stamp: Stamp | None = None, within: Sequence[str] = ()
) -> Iterator[SteadyFile]:
    """Open a `SteadyFile`, ``within`` directories as for `open_regular`; raises as both do."""
    with open_regular(path, within) as descriptor:
        yield SteadyFile(path, descriptor, stamp)


def read_steady(path: str | Path, limit: int, within: Sequence[str] = ()) -> tuple[bytes, Stamp]:
    """The content of a small file that did not change while it was read, and its stamp.

    Args:
        limit: bytes that it may have.
        within: as for `open_regular`.

    Raises:
        ChangingFile: it did.
        UnreadableFile: it is no regular file, larger than that, lies elsewhere, or cannot be read.
    """
    with open_steady(path, within=within) as file:
        if file.size > limit:
            raise UnreadableFile(f"{path} has more than the {limit} bytes that it may have.")
        content = file.read(file.size, 0)
        file.require_same(memoryview(content), 0)
        file.require_unchanged()
        return content, file.stamp


def read_regular(path: str | Path, limit: int) -> bytes:
    """The content of a small file.

    Args:
        limit: bytes that it may have.

    Raises:
        UnreadableFile: it is no regular file, larger than that, or cannot be read.
    """
    with open_regular(path) as descriptor:
        if os.fstat(descriptor).st_size > limit:  # before any of it is read
            raise UnreadableFile(f"{path} has more than the {limit} bytes that it may have.")
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


def _require_within(path: str | Path, opened: os.stat_result, within: Sequence[str]) -> None:
    """Refuse a file that links, its own or those of folders on the way, lead to outside of all directories."""
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(one) for one in within):
        raise UnreadableFile(f"{path} is a link to {real}, outside of {', '.join(within)}.")
    try:
        found = os.lstat(real)
    except OSError as error:
        raise _unreadable(path, error) from error
    if (found.st_dev, found.st_ino) != (
        opened.st_dev,
        opened.st_ino,
    ):  # the links led elsewhere when it was opened
        raise ChangingFile(f"{path} was replaced while it was opened.")


def _unreadable(path: str | Path, error: OSError | ValueError) -> UnreadableFile:
    if isinstance(error, OSError) and error.errno == errno.ENOENT:
        return UnreadableFile(f"There is no file {path}.")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UnreadableFile(f"{path} cannot be read: {reason}.")


def _open_for_writing(descriptor: int) -> bool:
    """Whether anybody has a file open for writing, or mapped so; False where the system does not tell."""
    try:
        import fcntl

        # What would tell of a writer that comes in between, and is not wanted: this signal is ignored by default.
        fcntl.fcntl(descriptor, _SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, _SETLEASE, fcntl.F_RDLCK)
    except (ImportError, AttributeError):
        return False
    except OSError as error:
        return error.errno == errno.EAGAIN
    with suppress(OSError):
        fcntl.fcntl(descriptor, _SETLEASE, fcntl.F_UNLCK)
    return False


def _in_memory(device: int) -> bool:
    """Whether a file system has no storage behind it that files are written back to; True if that is not known."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            kinds = [
                line.rpartition(" - ")[2].split(" ")[0] for line in mounts if line.split(" ")[2] == number
            ]
    except (OSError, IndexError):
        return True
    return not kinds or not set(kinds) <= {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "overlay"}
