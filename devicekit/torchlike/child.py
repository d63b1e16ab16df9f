"""Asks a question in a forked child, which ends with whatever the question has initialised.

To ask a device anything is, with many vendors, to initialise it, after which no child of the process can use it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress

_SECONDS = 60.0  # a cold driver answers within ten


def ask_in_child(question: Callable[[], object]) -> object:
    """What ``question`` answers in a forked child of this process.

    Args:
        question: its answer must be something that JSON can carry.

    Raises:
        RuntimeError: it raised there, or gave no answer within a minute.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Newer Pythons warn of every fork beside threads; this child only asks, and ends.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        with suppress(BaseException):
            os.close(reading)
            os.write(writing, _told(question).encode())
        os._exit(0)
    os.close(writing)
    try:
        answer = _read(reading, time.monotonic() + _SECONDS)
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):  # the host may reap its children itself
            os.waitpid(child, 0)
    return _parsed(answer)


def _told(question: Callable[[], object]) -> str:
    try:
        return json.dumps({"answer": question()})
    except BaseException as error:
        return json.dumps({"raised": f"{type(error).__name__}: {str(error)[:500]}"})


def _read(reading: int, deadline: float) -> bytes:
    found = b""
    while (left := deadline - time.monotonic()) > 0 and select.select([reading], [], [], left)[0]:
        part = os.read(reading, 1 << 16)
        if not part:
            break
        found += part
    return found


def _parsed(answer: bytes) -> object:
    try:
        told = json.loads(answer)
    except ValueError:  # it ended before it could answer, or was cut short
        raise RuntimeError(f"A child that was asked gave no answer within {_SECONDS:g} s.") from None
    if "raised" in told:
        raise RuntimeError(f"A child that was asked raised {told['raised']}")
    found: object = told["answer"]
    return found
