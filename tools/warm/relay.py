"""The process that a test started: hands everything to the one that forks, passes signals on, ends as told."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys

_PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def main(address: str, arguments: list[str]) -> None:
    """Run ``-m module`` or ``-c code`` with its arguments in a fork of the process behind ``address``."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # until somebody is there to pass them on to
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    ignored = [one for one in _PASSED_ON if signal.getsignal(one) is signal.SIG_IGN]
    order = {
        "arguments": arguments,
        "environ": dict(os.environ),
        "folder": os.getcwd(),
        "ignored": ignored,
    }
    file = os.memfd_create("order")
    os.write(file, json.dumps(order).encode())
    socket.send_fds(connection, [b"run"], [0, 1, 2, file])
    program = int(connection.recv(64))
    for one in _PASSED_ON:
        if one not in ignored:
            signal.signal(one, lambda number, frame: os.kill(program, number))
    for number in (0, 1, 2):
        os.close(number)  # what reads our output waits for the program's end, not for ours
    # One that arrives just before we wait would be seen only after: it has to end the waiting too.
    woken, waking = socket.socketpair()
    waking.setblocking(False)
    signal.set_wakeup_fd(waking.fileno())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    while connection not in select.select([connection, woken], [], [])[0]:
        woken.recv(64)
    status = int(connection.recv(64) or 1)
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
