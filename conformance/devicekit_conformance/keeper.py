"""Stands between the fork server and one worker: says how the worker ended, and ends whatever it has left behind.

It never runs a line of the backend's. What the worker started becomes the keeper's child when its parent ends,
also in a session of its own, so that nothing outlives the keeper.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from typing import NoReturn

from devicekit_conformance import processes

_TICK = 0.05  # seconds between looks at the worker


def keep(connection: int, log: int, control: socket.socket, order: Mapping[str, object]) -> NoReturn:
    """Fork the worker, tell its process id, wait until the judge or the worker is done, and clear away.

    Args:
        connection: file descriptor of the worker's end of its conversation with the judge.
        log: file descriptor that takes the worker's output.
        control: the keeper's own conversation: the judge says when to end, the keeper says what became of it.
        order: ``fresh`` asks for a new interpreter instead of a fork.
    """
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    processes.adopt_orphans()
    worker = os.fork()
    if worker == 0:
        control.close()
        _become_worker(connection, log, bool(order.get("fresh")))
    os.close(connection)
    os.close(log)
    _tell(control, pid=worker)
    status = _watch(control, worker)
    left = [one for one in processes.descendants(os.getpid()) if one.pid != worker]
    processes.end_descendants(os.getpid())
    own_session = [f"{one.name} ({one.pid})" for one in left if one.session != worker and not one.of_torch]
    _tell(control, status=status, left=len(left), own_session=own_session[:5])
    os._exit(0)


def _watch(control: socket.socket, worker: int) -> int | None:
    """Wait for the end: the worker's status as `subprocess` counts it, ``None`` where the judge was first."""
    status: int | None = None
    while True:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
                if ended[0] == worker:
                    status = os.waitstatus_to_exitcode(ended[1])
                    _tell(control, ended=status)
        if select.select([control], [], [], _TICK)[0]:
            return status


def _become_worker(connection: int, log: int, fresh: bool) -> NoReturn:
    try:
        os.setsid()
        processes.end_with_parent()
        if fresh:
            for descriptor in (connection, log):
                os.set_inheritable(descriptor, True)
            module = "devicekit_conformance.worker"
            os.execv(sys.executable, [sys.executable, "-m", module, str(connection), str(log)])
        from devicekit_conformance import worker

        worker.serve(socket.socket(fileno=connection), log)
    except BaseException:
        with contextlib.suppress(BaseException):
            os.write(log, traceback.format_exc().encode(errors="replace"))
        os._exit(70)
    os._exit(0)


def _tell(control: socket.socket, **message: object) -> None:
    with contextlib.suppress(OSError):  # the judge may be gone
        control.sendall(json.dumps(message).encode() + b"\n")
