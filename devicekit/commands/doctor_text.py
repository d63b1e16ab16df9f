"""A diagnosis in words, made to be pasted into a bug report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from devicekit.contract.text import human_bytes, shown
from devicekit.devtools.doctor.diagnosis import Diagnosis, Facts


def as_text(diagnosis: Diagnosis) -> str:
    """Sections of aligned lines; the problems last, where they are read."""
    lines = [
        *_section("system", _pairs(diagnosis.system)),
        *_section("packages", _pairs(diagnosis.packages, "not installed")),
        *_section("environment", _pairs(diagnosis.settings) if diagnosis.settings else ["nothing is set"]),
        *_section("torch", _torch(diagnosis)),
        *_section("backends", [line for one in diagnosis.backends for line in _backend(one)] or ["none"]),
        *_section("choice", _choice(diagnosis.choice)),
    ]
    if diagnosis.hosts:
        lines += _section("other engines", _pairs(diagnosis.hosts))
    if diagnosis.conformance is not None:
        lines += _section("conformance", _pairs(diagnosis.conformance))
    problems = [line for one in diagnosis.problems for line in _problem(one.what, one.remedy, one.serious)]
    return "\n".join([*lines, *_section("problems", problems or ["none"])]).strip()


def without_home(text: str) -> str:
    """The text with the user's home folder as ``~``, for pasting where others read."""
    return text.replace(str(Path.home()), "~")


def _section(title: str, lines: Iterable[str]) -> list[str]:
    return ["", title, *(f"  {part}" for line in lines for part in line.splitlines())]


def _pairs(facts: Facts, unknown: str = "unknown") -> list[str]:
    width = max(map(len, facts), default=0)
    return [f"{key:<{width}}  {unknown if value is None else value}" for key, value in facts.items()]


def _torch(diagnosis: Diagnosis) -> Iterator[str]:
    torch = diagnosis.torch
    if torch["ok"] is True:
        yield f"{torch['version']}, imported in {torch['seconds']} s"
        build = cast("Mapping[str, str]", torch["build"])
        yield "build: " + ", ".join(f"{key} {value}" for key, value in build.items())
    else:
        yield f"import fails: {torch['error']}"
        alone = cast(Facts, torch["without_autoload"])
        said = f"works, {alone['version']}" if alone["ok"] is True else f"fails: {alone['error']}"
        yield f"without extensions: {said}"
    for one in diagnosis.autoload:
        said = f"works, {one['seconds']} s" if one["ok"] is True else f"fails: {one['error']}"
        yield f"extension {one['name']} of {one['distribution']}: {said}"


def _backend(one: Facts) -> Iterator[str]:
    version = "" if one["version"] is None else f" {one['version']}"
    yield f"{one['name']} ({one['distribution']}{version}), contract {one['contract'] or 'unknown'}"
    yield f"  {one['reason'] if one['ok'] is True else one['error']}"
    for required, installed in cast("Mapping[str, str | None]", one["requires"]).items():
        yield f"  requires {required}: {installed or 'not installed'}"
    if newer := cast("Sequence[str]", one.get("newer", ())):
        yield f"  newer than this devicekit, and ignored: {', '.join(newer)}"
    for notice in cast("Sequence[str]", one.get("notices", ())):
        yield f"  to the plugin's author: {notice}"
    if signs := cast("Sequence[str]", one["hardware_signs"]):
        yield f"  signs of its hardware: {', '.join(signs)}"
    for index, device in enumerate(cast("Sequence[Facts]", one.get("devices", ()))):
        memory = human_bytes(cast("int | None", device["total_memory"]))
        yield f"  {one['name']}:{index}  {device['name'] or 'name unknown'}, {memory}"


def _choice(choice: Facts) -> Iterator[str]:
    if choice["ok"] is not True:
        yield "none: see the problems below"
    elif choice["request"] is None:
        yield f"{choice['backend']}"
    else:
        yield f"{choice['backend']}, asked for as {shown(choice['request'])}"


def _problem(what: str, remedy: str, serious: bool) -> Iterator[str]:
    yield f"{'!' if serious else '?'} {what}"
    yield f"  {remedy}"
