"""Reads the metadata of installed distributions. A broken one is reported, and does not hide the others.

``importlib.metadata`` reads every distribution for every question, so that one that cannot be read fails them all;
of two metadata folders of one name it sees the first. Both cases are told apart here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from packaging.utils import canonicalize_name

from devicekit.contract.text import shown
from devicekit.files import Stamp, UnreadableFile

_T = TypeVar("_T")
_FILE = "entry_points.txt"
_TARGET = re.compile(r"[^\W\d][\w.]*(?:\s*:\s*[^\W\d][\w.]*)?(?:\s*\[[^\]]*\])?")
_LARGEST = 1 << 20  # bytes of a list of entry points
_LONGEST = 300  # characters of anything a distribution says of itself, in a message


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a group of entry points, or what is wrong with it."""

    name: str
    value: str  # "package.module:attribute"
    distribution: str
    version: str | None
    problem: str | None = None  # why it cannot be used


@dataclass(frozen=True, slots=True)
class _About:
    name: str
    version: str | None
    folder: str


def entries(group: str) -> list[Entry]:
    """The entry points of a group in every installed distribution, broken and hidden ones included."""
    first: dict[str, metadata.Distribution] = {}
    seen: dict[str, set[tuple[str, str]]] = {}
    found: list[Entry] = []
    for distribution in _distributions():
        key = _key(distribution)
        earlier = first.setdefault(key, distribution)
        # Left-over metadata is asked who it is only where that matters: parsing it takes a millisecond.
        if earlier is not distribution and _folder(earlier) == _folder(distribution):
            continue  # one directory stands on sys.path twice
        for entry in _entries_of(distribution, group):
            own = seen.setdefault(key, set())
            if (entry.name, entry.value) not in own:
                own.add((entry.name, entry.value))
                hidden = earlier is not distribution
                found.append(_hidden(entry, distribution, earlier) if hidden else entry)
    return found


def installed_version(name: str) -> str | None:
    """The version of an installed distribution; ``None`` if it is not installed or its metadata cannot be read."""
    try:
        return metadata.version(name) or None
    except Exception:  # not found, or a metadata folder that is a ruin
        return None


def printable(text: str) -> str:
    """A distribution's text in a form fit for messages: one line of bounded length, without control codes."""
    shown = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text[:_LONGEST])
    return shown.encode("utf-8", "replace").decode("utf-8")


def _distributions() -> Iterator[metadata.Distribution]:
    found = iter(metadata.distributions())
    while True:
        try:
            yield next(found)
        except StopIteration:
            return
        except Exception:  # a directory on sys.path that cannot be listed ends that finder, not the program
            return


def _about(distribution: metadata.Distribution) -> _About:
    headers = _attempt(lambda: distribution.metadata)
    name = headers and _attempt(lambda: headers["Name"])
    version = headers and _attempt(lambda: headers["Version"])
    return _About(
        printable(str(name)) if name else _stem(distribution) or "unknown distribution",
        printable(str(version)) if version else None,
        _folder(distribution),
    )


def _key(distribution: metadata.Distribution) -> str:
    return canonicalize_name(_stem(distribution) or _about(distribution).name)


def _stem(distribution: metadata.Distribution) -> str:
    """What the metadata folder is named after; there is no public way to it that reads no file."""
    path = getattr(distribution, "_path", None)
    return "" if path is None else printable(Path(str(path)).name.rpartition(".")[0].partition("-")[0])


def _folder(distribution: metadata.Distribution) -> str:
    # The metadata folder itself where it is told, for two of one name may lie side by side.
    path = getattr(distribution, "_path", None) or _attempt(lambda: distribution.locate_file(""))
    found = _attempt(lambda: str(Path(str(path)).resolve()))
    return printable(found) if found else "an unknown folder"


def _entries_of(distribution: metadata.Distribution, group: str) -> Iterator[Entry]:
    if (own := getattr(distribution, "_path", None)) is not None and isinstance(own, Path):
        try:
            if Stamp.at(own / _FILE).size > _LARGEST:
                return
        except UnreadableFile:  # there is none, or a pipe that would never end
            return
    try:
        text = distribution.read_text(_FILE) or ""
    except UnicodeDecodeError as error:
        raw: bytes = error.object
        if group.encode() in raw:
            about, number = _about(distribution), raw.count(b"\n", 0, error.start) + 1
            yield _broken(about, f"its {_FILE} in {about.folder} is not UTF-8 (line {number})")
        return
    except Exception:  # a ruin that says nothing of backends is nobody's business here
        return
    if group not in text:
        return
    about, section = _about(distribution), ""
    for number, raw_line in enumerate(text.splitlines(), 1):
        line = raw_line.strip()
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
        elif section == group:
            yield _entry(line, number, about)


def _entry(line: str, number: int, about: _About) -> Entry:
    name, equals, value = (part.strip() for part in line.partition("="))
    where = f"line {number} of its {_FILE} in {about.folder}"
    if not equals or not value:
        return _broken(about, f"{where} gives no value: {shown(printable(line))}", name)
    if not name:
        return _broken(about, f"{where} gives no name: {shown(printable(line))}")
    if _TARGET.fullmatch(value) is None:
        return _broken(about, f"{where} is no 'module:attribute': {shown(printable(line))}", name)
    target, _, _ = value.partition("[")  # extras mean nothing here
    return Entry(printable(name), re.sub(r"\s", "", target), about.name, about.version)


def _broken(about: _About, problem: str, name: str = "") -> Entry:
    shown = printable(name) or canonicalize_name(about.name).removeprefix("devicekit-").replace("-", "_")
    return Entry(shown, "", about.name, about.version, f"The distribution {about.name} is broken: {problem}.")


def _hidden(entry: Entry, distribution: metadata.Distribution, earlier: metadata.Distribution) -> Entry:
    own, other = (
        f"{about.name} {about.version or '(no version)'} ({about.folder})"
        for about in (_about(distribution), _about(earlier))
    )
    problem = (
        f"{own} is hidden by {other}, which comes before it on sys.path: Python sees only the first of two "
        f"metadata folders of one name. Uninstall both (pip uninstall {entry.distribution}, twice); install one."
    )
    return replace(entry, problem=entry.problem or problem)


def _attempt(question: Callable[[], _T]) -> _T | None:
    try:
        return question()
    except Exception:  # whatever a ruin of a metadata folder raises
        return None
