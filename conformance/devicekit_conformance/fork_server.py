"""The judge's side of the process that workers are forked from: started when needed, and again when killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType

from devicekit_conformance.environment import PRISTINE
from devicekit_conformance.last_words import Log, quoted
from devicekit_conformance.plain_text import plain

_START_LIMIT = 180.0  # seconds; importing torch from a cold disk on a busy machine takes long
_MOST_STARTS = 5


class RunnerError(Exception):
    """The suite itself cannot go on: no process can be started. The text says why."""


class Nursery:
    """The process that workers are forked from. Shared by every backend that a command judges."""

    def __init__(self) -> None:
        self.deaths = 0  # how often it was found dead: it never ends by itself
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._errors: Log | None = None
        self._start()

    @property
    def alive(self) -> bool:
        """Whether the process is there. A backend that ends it is found out by this."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process id, while it is there."""
        return None if self._process is None else self._process.pid

    def fork(self, descriptors: list[int], *, fresh: bool) -> int:
        """Start a worker behind a keeper, on these descriptors: connection, log, and the keeper's own.

        Returns:
            The keeper's process id, which is its session's too.

        Raises:
            RunnerError: no process can be started.
        """
        request = json.dumps({"fresh": fresh}).encode()
        try:
            answer = self._asked(request, descriptors)
        except (OSError, ValueError):  # it is dying, or something has spoken in its place: one new one
            answer = self._asked_anew(request, descriptors)
        keeper = answer.get("keeper")
        if not isinstance(keeper, int):
            raise RunnerError(f"No worker can be started: {plain(answer.get('error'))}")
        return keeper

    def _asked(self, request: bytes, descriptors: list[int]) -> Mapping[str, object]:
        if not self.alive:
            raise ConnectionError("it has ended")
        assert self._control is not None
        socket.send_fds(self._control, [request], descriptors)
        return self._reply()

    def _asked_anew(self, request: bytes, descriptors: list[int]) -> Mapping[str, object]:
        self.deaths += 1
        why = self._why(ConnectionError("it has ended"))
        self._start(why)
        try:
            return self._asked(request, descriptors)
        except (OSError, ValueError) as error:
            raise RunnerError(
                f"The process that workers are forked from has died{self._why(error)}"
            ) from error

    def close(self) -> None:
        """End it, and with it every worker that is left. Safe to call twice."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(10 if self.alive else 0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        if self._errors is not None:
            self._errors.close()
        self._control = self._process = self._errors = None

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, why: str = "") -> None:
        self.close()
        if self._starts == _MOST_STARTS:
            raise RunnerError(f"The process that workers are forked from was ended {self._starts} times{why}")
        self._starts += 1
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_START_LIMIT)
        self._errors = Log()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "devicekit_conformance.nursery", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=_with_path(PRISTINE),
                stdin=subprocess.DEVNULL,
                stdout=self._errors.fileno,
                stderr=self._errors.fileno,
                start_new_session=True,
            )
        except OSError as error:
            raise RunnerError(f"No process can be started: {error}") from error
        finally:
            theirs.close()

    def _reply(self) -> Mapping[str, object]:
        received = b""
        assert self._control is not None
        while not received.endswith(b"\n"):
            piece = self._control.recv(65536)
            if not piece:
                raise ConnectionError("it closed its connection")
            received += piece
        found: Mapping[str, object] = json.loads(received)
        return found

    def _why(self, error: BaseException) -> str:
        words = "" if self._errors is None else quoted(self._errors.tail())
        return words or f" ({error})"


def _with_path(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` in which this suite and this devicekit are found, however this process found them."""
    return {**environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
