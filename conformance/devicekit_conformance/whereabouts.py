"""What holds up a process or a thread that should have ended: the line that it is at, as the end of a sentence."""

from __future__ import annotations

import faulthandler
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

from devicekit_conformance.calibration import Deadline

__all__ = ["THREAD_LIMIT", "answer_into", "held_up", "line_of"]

THREAD_LIMIT = 20.0  # seconds
_QUESTION = signal.SIGXCPU  # which means something else only where somebody limits processor time
_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)
_PATIENCE = 2.0  # seconds
_OWN = Path(__file__).parent
_LONGEST = 1 << 16  # bytes


def answer_into(descriptor: int) -> None:
    """From now on, write the lines that the first thread is at into an open file, whenever `line_of` asks.

    The interpreter does so by itself, whatever its threads wait for.
    """
    faulthandler.register(_QUESTION, file=descriptor, all_threads=False)


def line_of(process: int, descriptor: int) -> str:
    """The innermost line outside the suite that a process is at; empty if there is none, or it does not answer.

    Args:
        process: a child that called `answer_into`.
        descriptor: the other end of the pipe that it answers into.
    """
    os.kill(process, _QUESTION)
    received, ends = b"", time.monotonic() + _PATIENCE
    while (left := ends - time.monotonic()) > 0 and len(received) < _LONGEST:
        if not select.select([descriptor], [], [], left)[0]:
            break
        piece = os.read(descriptor, _LONGEST)
        if not piece:
            break
        received += piece
        if received.endswith(b"\n") and b" in <module>\n" in received:
            break  # the outermost line is the last one
    return _innermost(_FRAME.findall(received.decode(errors="replace")))


def held_up(*threads: threading.Thread) -> str:
    """Wait for threads that have begun; what to say of the first that does not end in time, empty if all do."""
    deadline = Deadline(THREAD_LIMIT)
    for thread in threads:
        while thread.is_alive() and (left := deadline.left()):
            thread.join(left)
        if thread.is_alive():
            frame = sys._current_frames().get(thread.ident or 0)
            walked = () if frame is None else traceback.walk_stack(frame)
            where = _innermost((one.f_code.co_filename, line, one.f_code.co_name) for one, line in walked)
            return f"did not return within {THREAD_LIMIT:g} s{where}"
    return ""


def _innermost(frames: Iterable[tuple[str, object, str]]) -> str:
    for path, line, function in frames:
        place = Path(path)
        if _OWN not in place.parents or _OWN / "selftest" in place.parents:
            return f": it is at {place}:{line}, in {function}"
    return ""
