"""The whole conformance suite on the device, hardware profile included, by the suite's own probe."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from devicekit.device import Device
from devicekit.devtools.certify.ground import Ground
from devicekit.devtools.certify.record import Findings, Skipped
from devicekit.documents import read_json
from devicekit.files import UnreadableFile

_LARGEST = 64 << 20  # bytes of a report

_SUITE = "devicekit_conformance"
_CLOSING = 20.0  # seconds kept for ending the suite and reading its report
_INTERRUPTED, _INCOMPLETE = 2, 6  # exit codes
_SIMULATED = ("--backend", f"{_SUITE}.simulated:discrete", "--probe", f"{_SUITE}.simulated:SimProbe")


def run(ground: Ground, findings: Findings) -> None:
    """As a command, whose report is there from the first second; what was judged when time is up counts."""
    if importlib.util.find_spec(_SUITE) is None:
        raise Skipped("the conformance suite is neither installed nor given by --plugins")
    folder = ground.scratch / "conformance-report"
    target = _SIMULATED if ground.simulate else ("--backend", ground.device.name)
    profiles = cast("Mapping[str, str]", importlib.import_module(f"{_SUITE}.rulebook").PROFILES)
    asked = [part for name in profiles for part in ("--profile", name)]
    command = [
        sys.executable,
        "-m",
        f"{_SUITE}.cli",
        "run",
        *target,
        *asked,
        "--report",
        str(folder),
        "--quiet",
    ]
    seen = {} if ground.simulate else alone(ground.device)
    code = _finish(subprocess.Popen(command, env={**os.environ, **seen}), ground.left - _CLOSING)
    report = _read(folder / "report.json")
    counts = cast("Mapping[str, int]", report.get("counts", {}))
    for name, count in counts.items():
        findings.number(f"requirements: {name}", count, "")
    probe = _of(report, "backend").get("probe")
    findings.note(f"verdict: {report.get('verdict')}; tier: {report.get('tier')}; probe: {probe}")
    results = cast("list[Mapping[str, str]]", report.get("results", []))
    for one in results:
        if one["status"] in ("fail", "error", "stale-waiver"):
            findings.note(f"{one['id']} {one['level']} {one['status']}: {one['message'][:300]}")
    wrong = [one["id"] for one in results if one["status"] in ("fail", "error") and one["level"] == "MUST"]
    findings.check("no requirement that was judged failed", not wrong, ", ".join(wrong))
    ended = code not in (_INTERRUPTED, None)
    undecided = sorted({one["id"] for one in results if one["status"] == "not-run"})
    findings.check(
        "the suite ran to its end in the time there was",
        ended,
        "" if ended else f"{len(undecided)} requirements were not reached",
    )
    if code == _INCOMPLETE:
        findings.note(f"could not be decided on this machine: {', '.join(undecided)}")


def alone(device: Device) -> Mapping[str, str]:
    """Variables under which a process has this device as its first, which is the one that the suite judges.

    Raises:
        Skipped: it is not the first, and nothing hides those before it.
    """
    if device.index == 0:
        return {}
    variable = device.visible_devices_variable()
    if variable is None:
        raise Skipped(
            f"the suite judges the first device, and nothing hides those before {device.torch_device}"
        )
    shown = [one.strip() for one in os.environ.get(variable, "").split(",") if one.strip()]
    return {variable: shown[device.index] if shown else str(device.index)}


def _finish(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit code; a run that takes too long is asked to end and to write what it has."""
    try:
        return process.wait(max(1.0, seconds))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_CLOSING / 2)
        process.kill()
        process.wait()
        return None


def _read(file: Path) -> Mapping[str, object]:
    try:
        return cast("Mapping[str, object]", read_json(file, _LARGEST))
    except UnreadableFile as error:
        raise RuntimeError(f"the suite left no report that can be read: {error}") from error


def _of(report: Mapping[str, object], key: str) -> Mapping[str, object]:
    found = report.get(key)
    return found if isinstance(found, dict) else {}
