"""Runs checks in worker processes, and turns a hang, a crash or a forgery into an answer instead of an end."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from devicekit_conformance import wire
from devicekit_conformance.calibration import Deadline, slowness
from devicekit_conformance.fork_server import Nursery, RunnerError
from devicekit_conformance.last_words import MOST_OUTPUT, Log, hook_in, place_in, quoted
from devicekit_conformance.outcomes import Status
from devicekit_conformance.plain_text import plain
from devicekit_conformance.target import Target

__all__ = ["HANGS", "Answer", "Nursery", "RunnerError", "Worker"]

_START_LIMIT = 60.0  # seconds for a worker to say that it is there
_MOST_LATE = 1000  # messages that may have waited to be read when time was up
_TICK = 0.2  # seconds between looks at the output's size
_CLEARING_LIMIT = 15.0  # seconds for the keeper to clear up; after that the fork server does
_LAST_BREATH = 3.0  # seconds for a worker to write where it hangs, or to be seen dead
HANGS = "hang in "  # how the cause of a time-out begins
_STATUSES = frozenset(
    one.value for one in (Status.PASS, Status.FAIL, Status.NOT_APPLICABLE, Status.NOT_RUN, Status.ERROR)
)


@dataclass(frozen=True)
class Answer:
    """What came back, or how the worker ended.

    Attributes:
        status: the check's own; ``fail`` where the worker did not live to say one.
        cause: what two answers have in common that come from one fault; empty if that cannot be told.
        changed: parts of the suite or of Python that the backend has replaced.
        alive: whether the worker can be asked again.
    """

    status: Status
    message: str
    cause: str = ""
    changed: str = ""
    alive: bool = True

    @property
    def hung(self) -> bool:
        return self.cause.startswith(HANGS)


@dataclass
class _Ending:
    """What the keeper told of a worker's end."""

    status: int | None = None  # as subprocess counts it; None if it had to be killed
    own_session: Sequence[str] = field(default_factory=tuple)


class _Closed(Exception):
    """The worker will say nothing more."""


class Worker:
    """One worker process and the conversation with it.

    Raises:
        RunnerError: no process can be started.
    """

    def __init__(self, nursery: Nursery, target: Target, *, fresh: bool = False) -> None:
        self.note = ""  # what the worker last said it was about to try
        self._log = Log()
        self._ended: int | None = None
        self._over: _Ending | None = None
        self._told = b""
        self._number = 0
        self._key = secrets.token_bytes(wire.KEY_BYTES)
        self._connection, theirs = wire.message_pair()
        self._control, keeping = socket.socketpair()
        with theirs, keeping:
            descriptors = [theirs.fileno(), self._log.fileno, keeping.fileno()]
            self._keeper = nursery.fork(descriptors, fresh=fresh)
        path = [*target.search_path, *sys.path]
        order = {"target": target.order, "path": path, "folder": os.getcwd()}
        try:
            self._connection.sendall(self._key)
            self._connection.sendall(json.dumps(order).encode())
            self._pid = self._process_id()
            self._next("hello", 0, time.monotonic() + _START_LIMIT * slowness())
        except (OSError, TimeoutError, _Closed, wire.Forged) as error:
            tail = self._log.tail()
            self.kill()
            raise RunnerError(f"A worker process did not start ({error}){quoted(tail)}") from error

    def judge(self, id: str, limit: float) -> Answer:
        """Have one requirement decided, in at most ``limit`` seconds of a machine that is not busy."""
        self.note = ""
        self._log.empty()
        try:
            fields = self._ask("judge", "answer", id, limit)
            said, status, _, cause, changed, message = fields
            if said != id or status not in _STATUSES:
                raise wire.Forged(
                    f"answered {plain(status, 50)!r} for {plain(said, 50)!r} when asked for {id}"
                )
        except TimeoutError:
            return self._timed_out(limit)
        except _Flood:
            self.kill()
            text = f"wrote more than {MOST_OUTPUT >> 20} MiB to its output{self._trying()}: the process was killed"
            return Answer(Status.FAIL, text, "flood", alive=False)
        except (wire.Forged, ValueError) as error:
            self.kill()
            text = f"the process {error}{self._trying()}: an answer that is not the suite's is not believed"
            return Answer(Status.FAIL, text, "forged", alive=False)
        except (OSError, _Closed):
            return self._obituary()
        return Answer(Status(status), plain(message), cause, changed)

    def facts(self, limit: float) -> Mapping[str, object]:
        """What the backend says of itself."""
        try:
            (text,) = self._ask("facts", "facts", "", limit)
            found = json.loads(text)
            return found if isinstance(found, dict) else {"error": "the backend's facts are no record"}
        except TimeoutError:
            self.kill()
            return {"error": f"the backend did not describe itself within {limit:g} s"}
        except (OSError, _Closed, _Flood, wire.Forged, ValueError, RecursionError) as error:
            self.kill()
            return {"error": plain(f"the backend could not be described: {error or 'the process ended'}")}

    def hindrance(self, kind: str, limit: float) -> str:
        """Why the "probe" or the "device" is none to judge by; empty if it is, or nothing can be told."""
        try:
            (text,) = self._ask(kind, kind, "", limit)
        except (TimeoutError, OSError, _Closed, _Flood, wire.Forged, ValueError):
            self.kill()
            return ""
        return plain(text)

    def kill(self) -> _Ending:
        """End the worker and everything it started, sessions of their own included."""
        if self._over is None:
            self._over = self._end()
        return self._over

    def _end(self) -> _Ending:
        self._connection.close()
        ending, cleared = _Ending(self._ended), False
        with contextlib.suppress(OSError, ValueError):
            self._control.sendall(b"end\n")
            deadline = time.monotonic() + _CLEARING_LIMIT
            while (told := self._keeper_says(deadline)) is not None:
                if "left" in told:
                    status, own = told.get("status"), told.get("own_session")
                    ending.status = status if isinstance(status, int) else self._ended
                    ending.own_session = [str(one) for one in own] if isinstance(own, list) else ()
                    cleared = True
                    break
        self._control.close()
        self._log.close()
        if (
            not cleared
        ):  # the keeper was killed or stopped; what it leaves comes to the fork server, which clears it
            for pid in (getattr(self, "_pid", None), self._keeper):
                if pid is not None:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(pid, signal.SIGKILL)
        return ending

    def _ask(self, kind: str, answer: str, argument: str, limit: float) -> tuple[str, ...]:
        """One request and its answer, which the worker confirms once it is back where it takes requests."""
        self._number += 1
        deadline = Deadline(limit)
        self._send(kind, argument)
        fields = self._next(answer, self._number, deadline)
        nonce = secrets.token_hex(8)
        self._send("confirm", nonce)
        if self._next("confirm", self._number, deadline) != (nonce,):
            raise wire.Forged("confirmed something else than it was asked to")
        return fields

    def _send(self, kind: str, argument: str) -> None:
        self._connection.sendall(json.dumps([self._number, kind, argument]).encode())

    def _next(self, kind: str, number: int, deadline: float | Deadline) -> tuple[str, ...]:
        """The fields of the next message of this kind. Any other, but a note, was not asked for."""
        late = 0
        while True:
            until = deadline if isinstance(deadline, float) else deadline.at
            if time.monotonic() >= until and (isinstance(deadline, float) or not deadline.extend()):
                late += 1  # what was said in time is heard, also by a judge that was kept from listening
                if late > _MOST_LATE or not select.select([self._connection], [], [], 0)[0]:
                    raise TimeoutError("it said nothing in time")
            ready, _, _ = select.select(
                [self._connection], [], [], min(_TICK, max(0.0, until - time.monotonic()))
            )
            if not ready:
                if self._log.size > MOST_OUTPUT:
                    raise _Flood
                if self._ended is None:
                    self._watch()
                elif not select.select([self._connection], [], [], 0)[0]:
                    raise _Closed  # it is dead, and what it said before is read
                continue
            message = wire.receive(self._connection, self._key, getattr(self, "_pid", None))
            if message is None:
                raise _Closed
            if message.kind == "note":
                note = plain("".join(message.fields), 300)
                if isinstance(deadline, Deadline) and note != self.note:
                    deadline.restart()  # what goes through hooks has as long for each
                self.note = note
            elif message.kind == kind and message.number == number:
                return message.fields
            else:
                raise wire.Forged(f"answered twice, or out of turn ({plain(message.kind, 30)!r})")

    def _watch(self) -> None:
        with contextlib.suppress(TimeoutError):
            self._keeper_says(time.monotonic())

    def _process_id(self) -> int:
        told = self._keeper_says(time.monotonic() + _START_LIMIT * slowness())
        pid = None if told is None else told.get("pid")
        if not isinstance(pid, int):
            raise _Closed("its keeper ended")
        return pid

    def _keeper_says(self, deadline: float) -> Mapping[str, object] | None:
        """The keeper's next message; ``None`` when it is gone.

        Raises:
            TimeoutError: it says nothing.
        """
        while b"\n" not in self._told:
            if not select.select([self._control], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("the keeper said nothing in time")
            piece = self._control.recv(65536)
            if not piece:
                return None
            self._told += piece
        line, self._told = self._told.split(b"\n", 1)
        found: Mapping[str, object] = json.loads(line)
        if isinstance(ended := found.get("ended"), int):
            self._ended = ended
        return found

    def _timed_out(self, limit: float) -> Answer:
        """Have the worker write its stack, then end it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self._pid, signal.SIGABRT)
        deadline = time.monotonic() + _LAST_BREATH
        with contextlib.suppress(TimeoutError, OSError, ValueError):
            while self._ended is None and self._keeper_says(deadline) is not None:
                pass
        tail = self._log.tail()
        self.kill()
        hook = hook_in(tail)
        text = f"did not finish within {limit:g} s{self._trying(hook)}{_at(tail)}: the process was killed"
        return Answer(Status.FAIL, text, f"{HANGS}{hook or place_in(tail) or self.note}", alive=False)

    def _obituary(self) -> Answer:
        deadline = time.monotonic() + _LAST_BREATH
        with contextlib.suppress(TimeoutError, OSError, ValueError):
            while self._ended is None and self._keeper_says(deadline) is not None:
                pass
        tail = self._log.tail()
        ended, ending = self._ended, self.kill()
        status = ending.status if ended is None else ended
        if ended is None:
            how = "closed its connection to the judge"
        elif ended < 0:
            how = f"was killed by {_signal_name(ended)}"
        else:
            how = f"ended with exit status {status}"
        hook = hook_in(tail)
        text = f"the process {how}{self._trying(hook)}{_at(tail)}{quoted(tail)}"
        return Answer(Status.FAIL, text, f"{how} in {hook or place_in(tail) or self.note}", alive=False)

    def _trying(self, hook: str | None = None) -> str:
        if hook is not None and hook not in self.note:
            return f" in {hook}()" + (f" while trying {self.note}" if self.note else "")
        return f" while trying {self.note}" if self.note else ""


class _Flood(Exception):
    """The worker writes without end."""


def _signal_name(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _at(tail: str) -> str:
    place = place_in(tail)
    return f" at {place}" if place else ""
