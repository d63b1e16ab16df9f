"""Starts workers cheaply: one interpreter that has imported torch, and no plugin, forks whenever one is needed.

A fresh interpreter spends a second or more on importing torch; a fork takes milliseconds, and nothing of any
backend has happened in it either.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import traceback


def main() -> None:
    """Fork a worker for each request on the socket whose number is the first argument, until it closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    _warm_up()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 2)
        if not message:
            return
        request = json.loads(message)
        if "reap" in request:
            control.sendall(json.dumps({"status": _reap(request["reap"])}).encode() + b"\n")
            continue
        child = os.fork()
        if child == 0:
            control.close()
            _become_worker(descriptors, request["order"])
        for descriptor in descriptors:
            os.close(descriptor)
        control.sendall(json.dumps({"pid": child}).encode() + b"\n")


def _warm_up() -> None:
    import numpy  # noqa: F401
    import torch  # noqa: F401

    # Not devicekit's own modules: they notice a fork, and a worker is to be a process like any other.
    from devicekit_conformance.rulebook import rulebook

    rulebook()


def _become_worker(descriptors: list[int], order: dict[str, object]) -> None:
    from devicekit_conformance import worker

    connection, log = descriptors
    try:
        os.setsid()  # the judge kills the group, and with it whatever the worker has started
        worker.serve(socket.socket(fileno=connection), log, order)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)
    os._exit(0)


def _reap(pid: int) -> int | None:
    """The exit status of a worker as `subprocess` counts it: negative for a signal."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)
    return None


if __name__ == "__main__":
    main()
