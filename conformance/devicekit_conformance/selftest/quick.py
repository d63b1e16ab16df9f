"""Judges one derived backend quickly: in forks of a process that has everything imported, until something fails.

The requirements that concern the fault's own hook are judged first, with only that hook tried; the others follow
where these found nothing. The first failure ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from devicekit_conformance.context import Context
from devicekit_conformance.frozen_contract import profile_of
from devicekit_conformance.outcomes import Status
from devicekit_conformance.rulebook import Requirement, rulebook
from devicekit_conformance.target import Target
from devicekit_conformance.worker import examine

__all__ = ["Finding", "judge"]

_PATIENCE = 100.0  # seconds without a word: what hangs is killed, and that is a failure
_STOPPED = frozenset({"fail", "error", "blocked"})


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


def judge(address: str, probe: str, hook: str = "") -> Finding:
    """Judge the backend at ``address``, whose fault concerns ``hook``."""
    before = _spent()
    target = Target(address, probe)
    rules = [rule for rule in rulebook().values() if not rule.fresh]
    first, rest = _concerning(rules, hook)
    statuses: dict[str, str] = {}
    found = _run(target, first, statuses, focus=frozenset({hook}) if hook else None)
    if found is None and hook:  # tried alone, hooks show less than together
        statuses.clear()
        found = _run(target, [*rest, *(rule for rule in first if rule.every)], statuses, focus=None)
    elif found is None:
        found = _run(target, rest, statuses, focus=None)
    result = found or Finding("pass")
    return Finding(result.status, result.requirement, result.message, round(_spent() - before, 3))


def _concerning(rules: Sequence[Requirement], hook: str) -> tuple[list[Requirement], list[Requirement]]:
    """The requirements that are judged first, and those that are judged where these found nothing."""
    light = [rule for rule in rules if not rule.every and rule.profile != "engine"]
    if not hook:
        return [], light
    profile = profile_of(hook)
    near = [rule for rule in rules if (rule.every and rule.profile == profile) or hook in rule.hooks]
    return near, light


def _run(
    target: Target, rules: Sequence[Requirement], statuses: dict[str, str], focus: frozenset[str] | None
) -> Finding | None:
    shared = [rule for rule in rules if rule.isolated is None]
    alone = [rule for rule in rules if rule.isolated is not None]
    for batch in (shared, *([one] for one in alone)):
        found = _batch(target, batch, statuses, focus)
        if found is not None:
            return found
    return None


def _batch(
    target: Target, batch: Sequence[Requirement], statuses: dict[str, str], focus: frozenset[str] | None
) -> Finding | None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _serve(target, batch, statuses, focus, writing)
    os.close(writing)
    try:
        return _listen(reading, statuses)
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
) -> None:
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        context = Context(target, lambda text: None, focus=focus)
        for rule in batch:
            if any(statuses.get(one) in _STOPPED for one in rule.after):
                continue
            os.write(writing, json.dumps({"trying": rule.id}).encode() + b"\n")
            status, message, *_ = examine(rule, context)
            statuses[rule.id] = status
            answer = {"id": rule.id, "status": status, "message": message[:400]}
            os.write(writing, json.dumps(answer).encode() + b"\n")
            if status in _STOPPED:
                break
    finally:
        os._exit(0)


def _listen(reading: int, statuses: dict[str, str]) -> Finding | None:
    received, trying = b"", ""
    while True:
        ready, _, _ = select.select([reading], [], [], _PATIENCE)
        if not ready:
            return Finding(Status.FAIL.value, trying, "did not return")
        piece = os.read(reading, 65536)
        if not piece:
            return Finding(Status.FAIL.value, trying, "the process ended") if trying else None
        received += piece
        while b"\n" in received:
            line, received = received.split(b"\n", 1)
            message = json.loads(line)
            if "trying" in message:
                trying = message["trying"]
                continue
            trying = ""
            statuses[message["id"]] = message["status"]
            if message["status"] in ("fail", "error"):
                return Finding(message["status"], message["id"], message["message"])


def _spent() -> float:
    own, children = time.process_time(), os.times()
    return own + children.children_user + children.children_system
