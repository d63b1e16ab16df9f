"""Examines an installation and draws the conclusions: what is wrong, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from devicekit.contract.errors import ConfigurationError
from devicekit.devtools.doctor import facts
from devicekit.devtools.doctor.children import AUTOLOAD_SWITCH, examine
from devicekit.devtools.doctor.hosts import hosts
from devicekit.documents import read_json
from devicekit.files import UnreadableFile
from devicekit.registry.candidates import Candidate
from devicekit.registry.discovery import discover
from devicekit.registry.request import requested_by_environment
from devicekit.registry.requirements import allowed_in_vain

Facts = Mapping[str, object]

_CONFORMANT = ("conformant", "conformant with waivers")  # verdicts of the conformance suite

_LONGEST_REPORT = 64 << 20  # bytes
_TIMEOUT = 120.0  # seconds for each examination


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong, and what to do. ``serious``: devices cannot be used as they should be."""

    what: str
    remedy: str
    serious: bool = True


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was found."""

    system: Facts
    packages: Facts
    settings: Facts
    torch: Facts
    autoload: Sequence[Facts]
    backends: Sequence[Facts]
    choice: Facts
    conformance: Facts | None
    problems: Sequence[Problem]
    hosts: Mapping[str, str]  # other engines, and whether they see devicekit

    @property
    def exit_status(self) -> int:
        """1 if there is a serious problem, otherwise 0."""
        return 1 if any(one.serious for one in self.problems) else 0

    def as_json(self) -> str:
        """The diagnosis for machines."""
        return json.dumps({"exit_status": self.exit_status, **asdict(self)}, indent=2)


def diagnose(*, conformance: Path | None = None, timeout: float = _TIMEOUT) -> Diagnosis:
    """Examine this installation. Imports neither torch nor a plugin into this process.

    Args:
        conformance: a report of the conformance suite, whose tier is shown.
        timeout: seconds for each examination.

    Raises:
        ConfigurationError: the conformance report cannot be read.
    """
    report = None if conformance is None else read_tier(conformance)
    candidates = discover()
    with ThreadPoolExecutor() as pool:  # importing torch is most of the time, and each examination does
        choosing = pool.submit(examine, "choice", timeout=timeout)
        torch, autoload = _examine_torch(timeout)
        # With a broken extension in place, everything else can still be examined without it.
        works = torch["ok"] is True
        choice = choosing.result() if works else examine("choice", autoload=False, timeout=timeout)
        backends = list(pool.map(lambda one: _examine_backend(one, choice, works, timeout), candidates))
    choice = {key: value for key, value in choice.items() if key != "chosen"}
    problems = [
        *_torch_problems(torch, autoload),
        *_setting_problems(candidates, choice.pop("release", None)),
        *_backend_problems(backends, choice),
        *_conformance_problems(report, choice),
    ]
    return Diagnosis(
        facts.system(),
        facts.packages(),
        facts.settings(candidates),
        torch,
        autoload,
        backends,
        choice,
        report,
        problems,
        hosts(),
    )


def torch_problems() -> Sequence[Problem]:
    """What is wrong with importing torch here, or with its extensions. Imports nothing into this process."""
    return list(_torch_problems(*_examine_torch(_TIMEOUT)))


def _examine_torch(timeout: float) -> tuple[Facts, Sequence[Facts]]:
    torch = examine("torch", timeout=timeout)
    autoload: list[Facts] = []
    for name, distribution in facts.autoload_entries():
        found = examine("autoload", name, autoload=False, timeout=timeout)
        autoload.append({"name": name, "distribution": distribution, **found})
    if torch["ok"] is not True:
        torch = {**torch, "without_autoload": examine("torch", autoload=False, timeout=timeout)}
    return torch, autoload


def _examine_backend(candidate: Candidate, choice: Facts, autoload: bool, timeout: float) -> Facts:
    """What a backend says of itself; asked in a process of its own where the choice has not told it already."""
    described = facts.describe(candidate)
    if candidate.error is not None:
        kind = type(candidate.error).__name__
        return {**described, "ok": False, "error": str(candidate.error), "kind": kind}
    if (reason := facts.left_out(candidate)) is not None:
        return {**described, "ok": None, "error": f"left out on purpose: {reason}", "kind": "LeftOut"}
    if (reason := facts.absent(candidate)) is not None:
        return {**described, "ok": None, "error": f"not on this machine: {reason}", "kind": "Absent"}
    chosen = cast("Facts", choice.get("chosen", {}))
    if choice.get("backend") == candidate.name and chosen.get("ok") is True:
        return {**described, **chosen}
    verdict = cast("Mapping[str, Facts]", choice.get("verdicts", {})).get(candidate.name, {})
    if verdict.get("verdict") == "no hardware":
        return {**described, "ok": False, "error": verdict["reason"], "kind": "BackendUnavailable"}
    return {**described, **examine("backend", candidate.name, autoload=autoload, timeout=timeout)}


def read_tier(path: Path) -> Facts:
    try:
        report = cast("Any", read_json(path, _LONGEST_REPORT))
        return {
            "backend": report["backend"].get("name", report["backend"].get("address")),
            "tier": report["tier"],
            "verdict": report["verdict"],
            "suite": report["suite"]["version"],
            "finished": report["finished"],
        }
    except (UnreadableFile, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} is no conformance report: {error!r}") from error


def _torch_problems(torch: Facts, autoload: Sequence[Facts]) -> Iterator[Problem]:
    for distribution, fault in facts.broken_extensions():
        yield Problem(
            f"An extension of torch's, of {distribution}, is broken: {fault}",
            f"Install it anew or uninstall it (pip uninstall {distribution}).",
        )
    culprits = [one for one in autoload if one["ok"] is not True]
    if torch["ok"] is not True:
        alone = cast(Facts, torch["without_autoload"])
        if alone["ok"] is True:
            remedy = f"Set {AUTOLOAD_SWITCH}=0, or repair the extension below."
        else:
            remedy = f"Install torch anew; without extensions it fails too ({alone['error']})."
        yield Problem(f"`import torch` fails: {torch['error']}", remedy)
    for one in culprits:
        yield Problem(
            f"torch's extension {one['name']} of {one['distribution']} fails: {one['error']}",
            f"Repair or uninstall it (pip uninstall {one['distribution']}), or set {AUTOLOAD_SWITCH}=0.",
        )


def _setting_problems(candidates: Sequence[Candidate], release: object) -> Iterator[Problem]:
    if release is not None:
        yield Problem(str(release), "Correct the variable, or the file. No engine starts before that.")
    if (wrong := facts.wrong_setting()) is not None:
        yield Problem(wrong, "Unset or correct the variable.")
    for said in allowed_in_vain(candidates):
        yield Problem(said, "Correct the name, or install its distribution.", serious=False)


def _says(error: object, known: str | None) -> bool:
    """Whether an error is what was told already."""
    return known is not None and str(error).endswith(known)


def _backend_problems(backends: Sequence[Facts], choice: Facts) -> Iterator[Problem]:
    known = facts.wrong_setting()  # a problem of its own, of which every backend fails
    if not backends:
        yield Problem("No backend is installed.", "Try: pip install devicekit-cpu")
        return
    for one in backends:
        if one["ok"] is True or one["kind"] in ("BackendUnavailable", "LeftOut", "Absent"):
            continue
        if _says(one["error"], known):
            continue
        seen = bool(one["hardware_signs"]) or one["problem"] is not None
        yield Problem(
            f"Backend {one['name']} of {one['distribution']} fails: {one['error']}",
            "Repair it, or uninstall it if this machine has no such device.",
            serious=seen,
        )
    if choice["ok"] is not True:
        if not _says(choice["error"], known):
            yield _nothing_chosen(backends, choice)
        return
    chosen = next((one for one in backends if one["name"] == choice["backend"]), None)
    unused = [str(one["name"]) for one in backends if one["hardware_signs"] and one is not chosen]
    if chosen is not None and chosen["host"] is True and unused:
        yield Problem(
            f"The host is used, although there are signs of hardware for {', '.join(unused)}.",
            "See why these backends find no device.",
            serious=False,
        )


def _nothing_chosen(backends: Sequence[Facts], choice: Facts) -> Problem:
    usable = [str(one["name"]) for one in backends if one["ok"] is True and one["automatic"] is False]
    if choice["kind"] != "BackendUnavailable" or not usable or requested_by_environment() is not None:
        return Problem(f"No backend can be chosen: {choice['error']}", "See the backends above.")
    return Problem(
        f"No backend is chosen by itself; used only when asked for by name: {', '.join(usable)}.",
        f"Ask for one (DEVICEKIT_BACKEND={usable[0]}), or install one for this machine's devices.",
        serious=False,
    )


def _conformance_problems(report: Facts | None, choice: Facts) -> Iterator[Problem]:
    if report is None:
        return
    if report["verdict"] not in _CONFORMANT:
        yield Problem(
            f"Backend {report['backend']} did not pass the conformance suite: {report['verdict']}.",
            "Read the report, and ask its vendor.",
        )
    if choice.get("backend") not in (None, report["backend"]):
        yield Problem(
            f"The conformance report is of {report['backend']}, but {choice['backend']} is what is used.",
            "Give the report of the backend that is used.",
            serious=False,
        )
