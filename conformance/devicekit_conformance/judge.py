"""Runs checks in worker processes, and turns a hang or a crash into an answer instead of an end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from devicekit_conformance.environment import PRISTINE
from devicekit_conformance.target import Target

_START_LIMIT = 60.0  # seconds; importing torch from a cold disk takes long
_LOG_TAIL = 1500  # characters of a dead worker's output that are worth quoting


@dataclass(frozen=True)
class Answer:
    """What came back. ``None``: the worker died or had to be killed, and ``ending`` says how."""

    content: Mapping[str, object] | None
    ending: str = ""


class Nursery:
    """The process that workers are forked from. Shared by every backend that a command judges."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "devicekit_conformance.nursery", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=_with_path(PRISTINE),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()

    def fork(self, order: Mapping[str, object], connection: socket.socket, log: int) -> None:
        request = json.dumps({"order": order}).encode()
        socket.send_fds(self._control, [request], [connection.fileno(), log])
        self._reply()

    def reap(self, pid: int) -> int | None:
        """Kill a worker with everything it started, and return its exit status."""
        self._control.sendall(json.dumps({"reap": pid}).encode())
        status = self._reply()["status"]
        return status if isinstance(status, int) else None

    def close(self) -> None:
        self._control.close()
        self._process.wait(10)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _reply(self) -> Mapping[str, object]:
        received = b""
        while not received.endswith(b"\n"):
            try:
                piece = self._control.recv(65536)
            except ConnectionError:
                piece = b""
            if not piece:
                raise RuntimeError("The process that workers are forked from has died; its errors are above.")
            received += piece
        found: Mapping[str, object] = json.loads(received)
        return found


class Worker:
    """One worker process and the conversation with it."""

    def __init__(self, nursery: Nursery, target: Target, *, fresh: bool = False) -> None:
        order = {"target": [target.address, target.probe], "path": sys.path, "folder": os.getcwd()}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the worker
        self._nursery = nursery
        self._process: subprocess.Popen[bytes] | None = None
        self._connection, theirs = socket.socketpair()
        self._received = b""
        self.note = ""  # what the worker last said it was about to try
        if fresh:
            self._process = self._start(order, theirs)
        else:
            nursery.fork(order, theirs, self._log.fileno())
        theirs.close()
        hello = self._read(_START_LIMIT)
        pid = None if hello is None else hello.get("pid")
        if not isinstance(pid, int):
            raise RuntimeError(f"A worker process did not start{_last_words(os.dup(self._log.fileno()))}")
        self._pid = pid

    def ask(self, request: str, limit: float) -> Answer:
        """Send one request and wait for its answer, at most ``limit`` seconds. A worker that fails is killed."""
        self.note = ""
        try:
            self._connection.sendall(json.dumps(request).encode() + b"\n")
            content = self._read(limit)
        except TimeoutError:
            trying = f" while trying {self.note}" if self.note else ""
            self.kill()
            return Answer(None, f"did not finish within {limit:g} s{trying}: the process was killed")
        except (ConnectionError, json.JSONDecodeError):
            content = None
        if content is None:
            return Answer(None, self._obituary())
        return Answer(content)

    def kill(self) -> int | None:
        """End the worker and everything it started; return its exit status."""
        self._connection.close()
        self._log.close()
        if self._process is None:
            return self._nursery.reap(self._pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    def _start(self, order: Mapping[str, object], theirs: socket.socket) -> subprocess.Popen[bytes]:
        log = self._log.fileno()
        arguments = [str(theirs.fileno()), str(log), json.dumps(order)]
        return subprocess.Popen(
            [sys.executable, "-m", "devicekit_conformance.worker", *arguments],
            pass_fds=[theirs.fileno(), log],
            env=_with_path(PRISTINE),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _read(self, limit: float) -> Mapping[str, object] | None:
        """The next message that is no note; ``None`` when the worker has closed the connection."""
        deadline = time.monotonic() + limit
        while True:
            while b"\n" in self._received:
                line, self._received = self._received.split(b"\n", 1)
                message: Mapping[str, object] = json.loads(line)
                if "note" not in message:
                    return message
                self.note = str(message["note"])
            ready, _, _ = select.select([self._connection], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            piece = self._connection.recv(65536)
            if not piece:
                return None
            self._received += piece

    def _obituary(self) -> str:
        # Its group must be gone before its last words are complete.
        tail_of = os.dup(self._log.fileno())
        status = self.kill()
        trying = f" while trying {self.note}" if self.note else ""
        if status is not None and status < 0 and -status != signal.SIGKILL:
            how = f"was killed by {signal.Signals(-status).name}"
        else:
            how = f"ended with exit status {status}"
        return f"the process {how}{trying}{_last_words(tail_of)}"


def _last_words(log: int) -> str:
    """The end of what a worker wrote to its output. Closes the file descriptor."""
    with os.fdopen(log, "rb") as file:
        file.seek(0)
        text = file.read().decode(errors="replace")[-_LOG_TAIL:].strip()
    return f"; its last words: {text}" if text else ""


def _with_path(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` in which this suite and this devicekit are found, however this process found them."""
    return {**environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
