"""Processes that hold memory at the same time, as a hook tells them apart."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator, Mapping
from typing import Any

from devicekit_conformance.measures import ROUNDING
from devicekit_conformance.trial import Trial

__all__ = ["tells_processes_apart"]

_TAKEN = 4 * ROUNDING  # bytes, of which no page makes nothing
_LIMIT = 30.0  # seconds, in which a process has used the device


def tells_processes_apart(trial: Trial) -> None:
    """Two processes are two in the list, whatever numbers they have there: another namespace's will do."""
    with contextlib.ExitStack() as both:
        first, second = (both.enter_context(_listed_as(trial)) for _ in range(2))
        one = first is not None and first == second
        trial.expect(not one, f"two processes that hold memory at the same time are listed as one, {first}")


@contextlib.contextmanager
def _listed_as(trial: Trial) -> Iterator[int | None]:
    """The number of a child that holds memory, by its own list; ``None`` where that does not show it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            os.write(writing, str(_own_number(trial) or "").encode() + b"\n")
            signal.pause()
        finally:
            os._exit(0)
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], _LIMIT)
        told = os.read(reading, 64).strip() if ready else b""
        yield int(told) if told else None
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _own_number(trial: Trial) -> int | None:
    """Of the one process whose memory grows as this one takes some."""
    used = trial.filled(4096, 1)
    before = _by_number(trial)
    block = trial.tensor(_TAKEN)
    after = _by_number(trial)
    grown = [pid for pid, now in after.items() if now - before.get(pid, 0) >= _TAKEN - ROUNDING]
    del used, block
    return grown[0] if len(grown) == 1 else None


def _by_number(trial: Trial) -> Mapping[int, int]:
    found: Any = trial.ctx.raw_hook(trial.hook)(trial.index)
    return {one.pid: one.used for one in found or () if one.used is not None}
