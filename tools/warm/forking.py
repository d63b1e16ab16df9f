"""The process that programs are forked from. It ends when its input does."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
import types
from pathlib import Path
from typing import Any, NoReturn


def wait(address: str) -> dict[str, Any]:
    """Fork for everyone who asks; returns in the forks, with what was asked for."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(address)
    listening.listen(64)
    watched = selectors.DefaultSelector()
    watched.register(listening, selectors.EVENT_READ)
    watched.register(0, selectors.EVENT_READ)
    asking: dict[int, socket.socket] = {}  # by the pid of the program
    print("ready", flush=True)
    while True:
        for key, _ in watched.select():
            if key.fileobj == 0:
                _end(list(asking))
            elif key.fileobj is listening:
                connection, _ = listening.accept()
                _, files, _, _ = socket.recv_fds(connection, 16, 4)
                program = os.fork()
                if not program:
                    watched.close()
                    listening.close()
                    for one in (connection, *asking.values()):
                        one.close()
                    return _become(files)
                for file in files:
                    os.close(file)
                asking[program] = connection
                connection.send(str(program).encode())
                watched.register(connection, selectors.EVENT_READ, program)
                watched.register(os.pidfd_open(program), selectors.EVENT_READ, program)
            elif isinstance(key.fileobj, socket.socket):  # whoever asked has gone
                watched.unregister(key.fileobj)
                if key.data in asking:
                    os.kill(key.data, signal.SIGKILL)
            else:
                watched.unregister(key.fileobj)
                os.close(key.fd)
                _tell(watched, asking.pop(key.data), os.waitpid(key.data, 0)[1])


def _tell(watched: selectors.BaseSelector, connection: socket.socket, status: int) -> None:
    if connection.fileno() in watched.get_map():
        watched.unregister(connection)
        connection.send(str(status).encode())
    connection.close()


def _end(programs: list[int]) -> None:
    for one in programs:
        os.kill(one, signal.SIGKILL)
    os._exit(0)


def _become(files: list[int]) -> dict[str, Any]:
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    order: dict[str, Any] = json.loads(os.pread(files[3], os.fstat(files[3]).st_size, 0))
    for file in files:
        os.close(file)
    os.environ.clear()
    os.environ.update(order["environ"])
    os.chdir(order["folder"])
    for one in order["ignored"]:
        signal.signal(one, signal.SIG_IGN)
    for stream, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        mode = "r" if number == 0 else "w"
        setattr(sys, stream, os.fdopen(number, mode, buffering=1 if number == 2 else -1, closefd=False))
        setattr(sys, f"__{stream}__", getattr(sys, stream))
    return order


def _run(arguments: list[str], environ: dict[str, str]) -> None:
    """As the interpreter does with ``-m``, ``-c`` and a file, each perhaps behind ``-u``."""
    if arguments[0] == "-u":
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # made by `_become`
        arguments = arguments[1:]
    added = [one for one in environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    what, *rest = arguments[1:] if arguments[0] in ("-m", "-c") else arguments
    folders = {"-m": os.getcwd(), "-c": ""}
    sys.path[0:1] = [folders.get(arguments[0], str(Path(what).parent)), *added]
    importlib.invalidate_caches()
    sys.argv = ["-c" if arguments[0] == "-c" else what, *rest]
    if arguments[0] == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        exec(compile(what, "<string>", "exec"), module.__dict__)
    else:
        runpy.run_path(what, run_name="__main__")


def _status(order: dict[str, Any]) -> int:
    try:
        _run(order["arguments"], order["environ"])
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            return left.code or 0
        print(left.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _leave(status: int) -> NoReturn:
    """End without taking the interpreter apart, which would copy every page of what was imported."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status & 0xFF)


if __name__ == "__main__":
    for _name in sys.argv[2:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(_name)
    gc.freeze()
    _leave(_status(wait(sys.argv[1])))
