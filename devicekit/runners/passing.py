"""A directory that is there for a moment, and goes even where its process is killed within it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "devicekit-passing-"


@contextmanager
def passing_directory(place: str | None = None) -> Iterator[Path]:
    """An empty directory of this process, removed at the end.

    Its owner holds a lock on it, which the system takes away from a process that ends. So each new directory first
    removes those that killed processes of the same user have left in the same place.

    Args:
        place: where to make it; None: where temporary files are.

    Raises:
        OSError: it cannot be made.
    """
    where = Path(place or tempfile.gettempdir())
    for left in where.glob(f"{_PREFIX}*"):
        _remove_if_left(left)
    path, handle = _make(where)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def _make(where: Path) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=where))
        # Between its making and its lock, another process can take it for one that was left.
        with suppress(FileNotFoundError):
            handle = _open(path)
            with suppress(OSError):  # file systems without locks: nothing is ever taken for left there
                fcntl.flock(handle, fcntl.LOCK_EX)
            if path.is_dir() and os.path.samestat(path.stat(), os.fstat(handle)):
                return path, handle
            os.close(handle)


def _remove_if_left(path: Path) -> None:
    try:
        handle = _open(path)
    except OSError:
        return
    try:
        if os.fstat(handle).st_uid == os.geteuid():
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    except OSError:
        pass
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
