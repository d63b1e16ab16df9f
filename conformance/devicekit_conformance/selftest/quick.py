"""Judges derived backends quickly, in forks of a process that has everything imported.

Of a faulty one, the requirements that concern the fault's own hook are judged first, with only that hook tried;
the others follow where these found nothing. The first failure ends it. Of an honest one everything is judged.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from devicekit_conformance.calibration import Deadline
from devicekit_conformance.context import Context
from devicekit_conformance.frozen_contract import profile_of
from devicekit_conformance.large_pages import hold_in_large_pages
from devicekit_conformance.outcomes import Status
from devicekit_conformance.process_state import leave_out
from devicekit_conformance.rulebook import Requirement, rulebook
from devicekit_conformance.target import Target
from devicekit_conformance.trying import warm_up
from devicekit_conformance.worker import examine

__all__ = ["Finding", "judge", "judge_all", "prepare"]

_PATIENCE = 100.0  # seconds
_STOPPED = frozenset({"fail", "error", "blocked"})
_FAILED = frozenset({"fail", "error"})


@dataclass(frozen=True)
class Finding:
    """What the suite said of one backend: the first failure, or that there was none."""

    status: str
    requirement: str = ""
    message: str = ""
    seconds: float = 0.0  # of processor time, in every process

    @property
    def caught(self) -> bool:
        return self.status == Status.FAIL.value


def prepare() -> None:
    """Import, and lay out for cheap forks, what every backend is judged with."""
    warm_up()
    leave_out()
    hold_in_large_pages()


def judge(address: str, probe: str, hook: str = "") -> Finding:
    """Judge the backend at ``address``, whose fault concerns ``hook``."""
    before = _spent()
    target = Target(address, probe)
    rules = [rule for rule in rulebook().values() if not rule.fresh]
    first, rest = _concerning(rules, hook)
    statuses: dict[str, str] = {}
    found = _first_failure(target, first, statuses, frozenset({hook}), alone_first=False) if hook else None
    if found is None:  # tried alone, hooks show less than together
        statuses.clear()
        rest += [rule for rule in first if rule.every]
        # What is wrong with the whole backend shows when it is loaded, which is judged in processes of their own.
        found = _first_failure(target, rest, statuses, None, alone_first=not hook)
    result = found or Finding("pass")
    return Finding(result.status, result.requirement, result.message, round(_spent() - before, 3))


def judge_all(address: str, probe: str | None, rules: Sequence[Requirement]) -> Iterator[Finding]:
    """Judge the backend at ``address`` by all of ``rules``; after a failure, in a new process."""
    target, statuses = Target(address, probe), dict[str, str]()
    for batch in _batches(rules):
        left = list(batch)
        while left:
            yield from _answers(target, left, statuses, focus=None)
            left = [rule for rule in left if rule.id not in statuses]


def _concerning(rules: Sequence[Requirement], hook: str) -> tuple[list[Requirement], list[Requirement]]:
    """The requirements that are judged first, and those that are judged where these found nothing."""
    light = [rule for rule in rules if not rule.every and rule.profile != "engine"]
    if not hook:
        return [], light
    profile = profile_of(hook)
    near = [rule for rule in rules if (rule.every and rule.profile == profile) or hook in rule.hooks]
    return near, light


def _batches(rules: Sequence[Requirement], alone_first: bool = False) -> Iterator[Sequence[Requirement]]:
    """What is judged in one process, and each of those that need one of their own."""
    shared = [rule for rule in rules if rule.isolated is None]
    alone = [[rule] for rule in rules if rule.isolated is not None]
    yield from (*alone, shared) if alone_first else (shared, *alone)


def _first_failure(
    target: Target,
    rules: Sequence[Requirement],
    statuses: dict[str, str],
    focus: frozenset[str] | None,
    alone_first: bool,
) -> Finding | None:
    for batch in _batches(rules, alone_first):
        with contextlib.closing(_answers(target, batch, statuses, focus)) as answers:
            for found in answers:
                if found.status in _FAILED:
                    return found
    return None


def _answers(
    target: Target, batch: Sequence[Requirement], statuses: dict[str, str], focus: frozenset[str] | None
) -> Generator[Finding, None, None]:
    """What a fork finds of each requirement, up to the first failure: who failed may be in any state."""
    # It is ended in the middle of its work, and leaves whatever it has there.
    with tempfile.TemporaryDirectory(prefix="dk-", ignore_cleanup_errors=True) as folder:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _serve(target, batch, statuses, focus, writing, folder)
        os.close(writing)
        try:
            for found in _listen(reading):
                statuses[found.requirement] = found.status
                yield found
        finally:
            os.close(reading)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _serve(
    target: Target,
    batch: Sequence[Requirement],
    statuses: dict[str, str],
    focus: frozenset[str] | None,
    writing: int,
    folder: str,
) -> None:
    try:
        os.setsid()
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        trying = {"trying": ""}

        def tell(text: str = "") -> None:
            os.write(writing, json.dumps(trying).encode() + b"\n")

        context = Context(target, tell, focus=focus)
        for rule in batch:
            trying["trying"] = rule.id
            tell()
            status, message = Status.BLOCKED.value, ", ".join(rule.after)
            if not any(statuses.get(one) in _STOPPED for one in rule.after):
                status, message, *_ = examine(rule, context)
            statuses[rule.id] = status
            answer = {"id": rule.id, "status": status, "message": message[:400]}
            os.write(writing, json.dumps(answer).encode() + b"\n")
            if status in _FAILED:
                break
    finally:
        os._exit(0)


def _listen(reading: int) -> Iterator[Finding]:
    received, trying = b"", ""
    while True:
        if not _speaks(reading, trying):
            yield Finding(Status.FAIL.value, trying, "did not return")
            return
        piece = os.read(reading, 65536)
        if not piece:
            if trying:
                yield Finding(Status.FAIL.value, trying, "the process ended")
            return
        received += piece
        while b"\n" in received:
            line, received = received.split(b"\n", 1)
            message = json.loads(line)
            if "trying" in message:
                trying = message["trying"]
                continue
            trying = ""
            yield Finding(message["status"], message["id"], message["message"])


def _speaks(reading: int, trying: str) -> bool:
    """Whether there is a word in time: what hangs for longer is killed, and that is a failure."""
    limit = rulebook()[trying].isolated if trying else None
    deadline = Deadline(max(_PATIENCE, limit or 0.0))
    while left := deadline.left():
        if select.select([reading], [], [], left)[0]:
            return True
    return False


def _spent() -> float:
    own, children = time.process_time(), os.times()
    return own + children.children_user + children.children_system
