"""Finding and ending what a process has started, sessions of their own included."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

_SUBREAPER, _PARENT_DEATH = 36, 1  # prctl(2)
_SHARES_MEMORY = "torch_shm_manag"  # torch starts one where memory is shared; the kernel keeps 15 characters
# Two seconds: what is killed takes its time to go, and a fork bomb forks meanwhile.
_ROUNDS, _PAUSE = 200, 0.01
_LOOKS = 20


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it."""

    pid: int
    parent: int
    session: int
    name: str

    @property
    def of_torch(self) -> bool:
        """Whether torch itself started it: no backend can help that."""
        return self.name == _SHARES_MEMORY


def adopt_orphans() -> None:
    """Let descendants of this process whose parent ends become its own children, where the system can do that."""
    _prctl(_SUBREAPER, 1)


def end_with_parent() -> None:
    """Have this process killed when its parent ends, where the system can do that."""
    _prctl(_PARENT_DEATH, int(signal.SIGKILL))


def descendants(root: int) -> list[Process]:
    """Every living process below ``root``; empty where the system does not show them."""
    children: dict[int, list[Process]] = defaultdict(list)
    for process in _all():
        children[process.parent].append(process)
    found, waiting = [], [root]
    while waiting:
        below = children.pop(waiting.pop(), [])
        found += below
        waiting += [one.pid for one in below]
    return found


def strays() -> list[Process]:
    """What runs beside or below this worker in a session of its own, orphans that its keeper took in included."""
    own, keeper = os.getpid(), os.getppid()
    if _children(own) == [] and _children(keeper) == [own]:
        return []  # nearly always, and found out cheaply
    session = os.getsid(0)
    return [
        one for one in descendants(keeper) if one.pid != own and one.session != session and not one.of_torch
    ]


def torch_shares_memory() -> bool:
    """Whether torch has started its manager of shared memory in this process."""
    return any(map(_shares_memory, _children(os.getpid()) or ()))


def started() -> frozenset[int] | None:
    """Children of this process but for what torch or Python starts; ``None`` where the system keeps no list."""
    own, (tracker, _) = _children(os.getpid()), memory_tracker()
    return None if own is None else frozenset(own) - {tracker, *filter(_shares_memory, own)}


def memory_tracker() -> tuple[int | None, int | None]:
    """The process that Python starts where memory is shared by name, and the open file that leads to it."""
    found: Any = vars(resource_tracker)["_resource_tracker"]
    return getattr(found, "_pid", None), getattr(found, "_fd", None)


def _shares_memory(pid: int) -> bool:
    return _name(pid) == _SHARES_MEMORY


def has_children() -> bool:
    """Whether this process has children but for what torch itself starts, as far as can be known."""
    return started() != frozenset()


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError:
        return ""


def _children(pid: int) -> list[int] | None:
    """Direct children by the kernel's own list; ``None`` where it keeps none."""
    for _ in range(_LOOKS):  # a thread that ends meanwhile hands its children to another
        lists = list(Path(f"/proc/{pid}/task").glob("*/children"))
        with contextlib.suppress(OSError):
            found = [int(one) for path in lists for one in path.read_text(encoding="ascii").split()]
            return found if lists else None
    return None


def in_session(session: int) -> list[Process]:
    """What runs in a session, but for what torch itself starts."""
    return [one for one in _all() if one.session == session and not one.of_torch]


def end_session(session: int) -> None:
    """Kill all of it."""
    for one in _all():
        if one.session == session:
            _send(one.pid, signal.SIGKILL)


def end_descendants(root: int) -> None:
    """Kill everything below ``root``, which is this process, until nothing is left to wait for."""
    for _ in range(_ROUNDS):
        left = descendants(root)
        for process in left:  # stopped first: what forks cannot get ahead of the killing
            _send(process.pid, signal.SIGSTOP)
        for process in left:
            _send(process.pid, signal.SIGKILL)
        if not reap_ended() and not left:
            return
        time.sleep(_PAUSE)


def reap_ended() -> bool:
    """Wait for every child that has ended; whether there are children that have not."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return True
    return False


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _all() -> Iterator[Process]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "stat").read_bytes().decode(errors="replace")
        except OSError:
            continue
        name, _, rest = line.partition("(")[2].rpartition(")")
        state, parent, _, session, *_ = rest.split()
        if state != "Z":
            yield Process(int(entry.name), int(parent), int(session), name)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
