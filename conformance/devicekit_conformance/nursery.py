"""Starts workers cheaply: one interpreter that has imported torch, and no plugin, forks whenever one is needed.

A fresh interpreter spends a second or more on importing torch; a fork takes milliseconds, and nothing of any
backend has happened in it either. Between this process and each worker stands a `keeper`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator

from devicekit_conformance import keeper, processes
from devicekit_conformance.integrity import guard
from devicekit_conformance.large_pages import hold_in_large_pages
from devicekit_conformance.process_state import leave_out

_CLEARING = 5.0  # seconds
_WAITING = "OMP_WAIT_POLICY"  # read once, when the library is loaded


def main() -> None:
    """Fork a keeper for each request on the socket whose number is the first argument, until it closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    processes.adopt_orphans()
    _warm_up()
    keepers: set[int] = set()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 3)
        if not message:
            _leave_nothing(keepers)
            return
        _clear_strays(keepers)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        order = json.loads(message)
        try:
            child = os.fork()
        except OSError as error:  # no memory, or no process left
            _answer(control, {"error": str(error)})
        else:
            if child == 0:
                control.close()
                connection, log, keeping = descriptors
                keeper.keep(connection, log, socket.socket(fileno=keeping), order)
            keepers.add(child)
            _answer(control, {"keeper": child})
        for descriptor in descriptors:
            os.close(descriptor)


def _warm_up() -> None:
    with _threads_wait_asleep():
        import numpy  # noqa: F401
        import torch

    with contextlib.suppress(ImportError):
        import torch.distributed.tensor  # noqa: F401  # torch does, when it first meets a tensor subclass

    # What each worker imports of devicekit and of the suite. A requirement of its own (DK-LOAD-008) has an
    # interpreter in which nothing was imported.
    import devicekit.device
    import devicekit.registry.loading
    import devicekit.torchlike  # noqa: F401
    from devicekit_conformance import programs, worker  # noqa: F401
    from devicekit_conformance.effects import effect_of
    from devicekit_conformance.rulebook import rulebook

    rulebook()
    effect_of("")
    guard()
    leave_out()
    hold_in_large_pages()


@contextlib.contextmanager
def _threads_wait_asleep() -> Iterator[None]:
    """Libraries that are loaded inside do not spin where their threads wait for one another.

    A check needs little of a processor, and on a busy machine what spins takes the time of what it waits for.
    """
    if _WAITING in os.environ:
        yield
        return
    os.environ[_WAITING] = "passive"
    yield
    del os.environ[_WAITING]


def _leave_nothing(keepers: set[int]) -> None:
    """Let the keepers clear up, which they do when the judge has gone, and end what is left after a while."""
    deadline = time.monotonic() + _CLEARING
    while keepers and time.monotonic() < deadline:
        _clear_strays(keepers)
        time.sleep(0.01)
    processes.end_descendants(os.getpid())


def _clear_strays(keepers: set[int]) -> None:
    """Wait for keepers that have ended, and kill what a keeper that was itself killed has left to this process."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            keepers.discard(ended)
    for process in processes.descendants(os.getpid()):
        if process.parent == os.getpid() and process.pid not in keepers:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signal.SIGKILL)


def _answer(control: socket.socket, message: dict[str, object]) -> None:
    control.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
