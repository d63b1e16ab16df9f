"""Runs the parts, each in a process of its own under its own limit, and tells of each as soon as it has ended."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from devicekit.devtools.certify.part import Part
from devicekit.devtools.certify.record import Outcome, Status
from devicekit.devtools.certify.surroundings import without_paths
from devicekit.documents import read_json
from devicekit.files import UnreadableFile

_GRACE = 5.0  # seconds between asking a part to end and ending it
_LEAST = 5.0  # seconds; with less left a part is not begun
_TAIL = 25  # lines of output that are kept of a part that failed
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run, on what, for how long at most.

    Attributes:
        spec: as for `devicekit.get_device`.
        seconds: for all parts together.
        patience: multiplies every limit, on a busy machine.
        skip: parts to leave out.
        path: folders for the front of ``PYTHONPATH``.
        scratch: a folder of this run's own.
    """

    parts: Sequence[Part]
    spec: str | None
    simulate: bool
    seconds: float
    patience: float
    skip: frozenset[str]
    path: Sequence[Path]
    scratch: Path


def run(plan: Plan) -> Iterator[Outcome]:
    """The outcome of every part, in order, whatever becomes of it."""
    end = time.monotonic() + plan.seconds * plan.patience
    for part in plan.parts:
        left = end - time.monotonic()
        if part.name in plan.skip:
            yield Outcome(part.name, Status.SKIPPED, "left out by --skip or --only")
        elif left < _LEAST:
            yield Outcome(
                part.name, Status.SKIPPED, f"no time was left of {plan.seconds * plan.patience:.0f} s"
            )
        else:
            yield _run(part, plan, min(part.limit * plan.patience, left))


def _run(part: Part, plan: Plan, limit: float) -> Outcome:
    file, log = plan.scratch / f"{part.name}.json", plan.scratch / f"{part.name}.log"
    request = plan.scratch / f"{part.name}.request"
    asked = {
        "part": part.name,
        "module": part.module,
        "outcome": str(file),
        "spec": plan.spec,
        "simulate": plan.simulate,
        "scratch": str(plan.scratch),
        "seconds": limit,
    }
    request.write_text(json.dumps(asked), encoding="utf-8")
    started, cpu = time.monotonic(), _cpu_seconds()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "devicekit.devtools.certify.child", str(request)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(plan.path),
            start_new_session=True,  # so that it ends with everything it started
        )
        in_time = _wait(process, limit)
    outcome = _outcome(part.name, file)
    outcome.seconds = round(time.monotonic() - started, 2)
    outcome.cpu_seconds = round(_cpu_seconds() - cpu, 2)
    if not in_time and outcome.status is Status.RUNNING:
        outcome.status, outcome.reason = Status.FAILED, f"it had not ended after {limit:.0f} s"
    elif outcome.status is Status.RUNNING:
        outcome.status, outcome.reason = Status.FAILED, _ending(process.returncode)
    if outcome.status is Status.FAILED:
        text = log.read_text(encoding="utf-8", errors="replace")
        outcome.notes += without_paths(text, plan.scratch).splitlines()[-_TAIL:]
    outcome.reason = without_paths(outcome.reason, plan.scratch)
    return outcome


def _wait(process: subprocess.Popen[bytes], limit: float) -> bool:
    """Whether a process ended in time. In any case it has ended afterwards, with its group."""
    try:
        process.wait(limit)
        return True
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
        return False
    finally:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _outcome(name: str, file: Path) -> Outcome:
    try:
        return Outcome.from_data(cast("Any", read_json(file)))
    except (UnreadableFile, ValueError, KeyError, TypeError):
        return Outcome(name)


def _ending(code: int) -> str:
    if code < 0:
        return f"its process was ended by signal {-code} ({signal.Signals(-code).name})"
    return f"its process ended with status {code} and said nothing"


def _environment(path: Sequence[Path]) -> Mapping[str, str]:
    package = Path(__file__).resolve().parents[3]  # where this devicekit is imported from
    before = os.environ.get("PYTHONPATH")
    entries = [*map(str, path), str(package), *([before] if before else [])]
    return {**os.environ, **_OFFLINE, "PYTHONPATH": os.pathsep.join(entries), "PYTHONUNBUFFERED": "1"}
