"""What a worker's output says of its end: its last words, and the hook in which it hung or crashed."""

from __future__ import annotations

import os
import re

from devicekit_conformance.frozen_contract import HOOKS
from devicekit_conformance.plain_text import plain

MOST_OUTPUT = 64 << 20  # bytes that a worker may write while one requirement is judged
_TAIL = 64 * 1024  # bytes that are looked at
_QUOTED = 1500  # characters that are worth quoting
_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>\w+)')
_STACKS = re.compile(r"^(Fatal Python error|Current thread|Thread 0x)", re.MULTILINE)
_SUITE = ("devicekit_conformance", "/devicekit/")


class Log:
    """An unnamed file that takes a worker's output; however much it writes, the end is what is read."""

    def __init__(self) -> None:
        import tempfile

        with tempfile.NamedTemporaryFile(prefix="devicekit-conformance-") as made:
            self.fileno = os.open(made.name, os.O_RDWR | os.O_APPEND)

    @property
    def size(self) -> int:
        return os.fstat(self.fileno).st_size

    def empty(self) -> None:
        """Forget what was written; the worker appends, so it goes on from the start."""
        os.ftruncate(self.fileno, 0)

    def tail(self) -> str:
        size = self.size
        return os.pread(self.fileno, _TAIL, max(0, size - _TAIL)).decode(errors="replace")

    def close(self) -> None:
        os.close(self.fileno)


def quoted(tail: str) -> str:
    """The end of the output as the end of a sentence, stacks left out; empty if there was none."""
    text = _STACKS.split(tail, maxsplit=1)[0].strip()[-_QUOTED:]
    return f"; its last words: {plain(text)}" if text else ""


def hook_in(tail: str) -> str | None:
    """The hook of the contract that a stack in the output ends in; ``None`` if there is none."""
    place = _hook_frame(tail)
    return None if place is None else place["name"]


def place_in(tail: str) -> str:
    """Where the stack in the output is inside the backend, as ``file:line``; empty if that cannot be seen."""
    place = _hook_frame(tail) or next(
        (one for one in _FRAME.finditer(tail) if not any(part in one["file"] for part in _SUITE)), None
    )
    return "" if place is None else plain(f"{place['file']}:{place['line']}", 300)


def _hook_frame(tail: str) -> re.Match[str] | None:
    frames = [one for one in _FRAME.finditer(tail) if one["name"] in HOOKS]
    theirs = [one for one in frames if not any(part in one["file"] for part in _SUITE)]
    return next(iter(theirs or frames), None)
