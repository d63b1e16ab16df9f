"""One process at a time has a fleet's file: it locks another one beside it, which says who that is."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from devicekit.contract.errors import ConfigurationError
from devicekit.contract.text import shown
from devicekit.fleet.errors import FleetBusy

_LONGEST_NAME = 500  # bytes
_OURS = b"Process "  # what it says begins so


class Lock:
    """The lock of a file, had by this process from `take` to `release`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside = path.with_name(f".{path.name}.lock")
        self._handle = -1

    def take(self) -> None:
        """Have it, if it is free.

        Raises:
            FleetBusy: another process has it; the message says which.
            ConfigurationError: it cannot be had, or something else stands in its place.
        """
        # Not through a link, nor into what has another name too: what is there might be anybody's.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW
        try:
            handle = os.open(self._beside, flags, 0o600)
        except OSError as error:
            raise self._unusable(str(error)) from error
        try:
            status = os.fstat(handle)
            said = os.pread(handle, _LONGEST_NAME, 0) if stat.S_ISREG(status.st_mode) else b"?"
            if status.st_nlink > 1 or not said.startswith(_OURS[: len(said)]):
                raise self._unusable(f"{self._beside} is no lock of a fleet's.")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                who = said.decode(errors="replace").strip()
                who = (who if who.isprintable() else shown(who)) or "Another process"
                raise FleetBusy(f"{who} steers the fleet of {self._path} now.") from error
            except OSError as error:  # a file system that has none
                raise self._unusable(f"{self._beside} cannot be locked: {error}") from error
            with suppress(OSError):  # on a full disk nobody is told who it is
                os.ftruncate(handle, 0)
                os.pwrite(handle, _OURS + f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle

    def renew(self) -> None:
        """Have it still: where the file was removed, or replaced, the one that is there now. Raises as `take`."""
        with suppress(FileNotFoundError):
            there, had = os.lstat(self._beside), os.fstat(self._handle)
            if (there.st_dev, there.st_ino) == (had.st_dev, had.st_ino):
                return
        before = self._handle
        self.take()
        os.close(before)

    def release(self) -> None:
        """Let others have it."""
        with suppress(OSError):
            os.ftruncate(self._handle, 0)
        os.close(self._handle)

    def _unusable(self, why: str) -> ConfigurationError:
        return ConfigurationError(f"The fleet's file {self._path} cannot be used: {why}")


@contextmanager
def locked(path: Path) -> Iterator[Lock]:
    """Hold the lock of a file. Raises as `Lock.take`."""
    lock = Lock(path)
    lock.take()
    try:
        yield lock
    finally:
        lock.release()
