"""Remembers what was found in files that have not changed since."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, cast

from devicekit.devtools.audit.findings import Finding
from devicekit.devtools.audit.waivers import Waivers
from devicekit.documents import read_json
from devicekit.files import UnreadableFile

_LONGEST = 64 << 20  # bytes


@dataclass(frozen=True, slots=True)
class FileResult:
    """What one file holds."""

    findings: tuple[Finding, ...]
    waivers: Waivers
    lines: int  # of code, without blank and comment lines


class Cache:
    """Results by path, kept in one file in the user's cache folder. A cache that cannot be used is none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp = _stamp()
        self._known: dict[str, list[Any]] = {}
        self._seen: dict[str, list[Any]] = {}
        if path is not None:
            with contextlib.suppress(UnreadableFile, ValueError, KeyError, TypeError, AttributeError):
                stored = cast("Any", read_json(path, _LONGEST))
                if stored["stamp"] == self._stamp:
                    self._known = dict(stored["files"])

    @classmethod
    def of_user(cls) -> Cache:
        """The cache for audits that are started in this folder."""
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        here = hashlib.sha256(os.fsencode(Path.cwd())).hexdigest()[:16]
        return cls(base / "devicekit" / f"audit-{here}.json")

    def get(self, path: Path, name: str) -> FileResult | None:
        """What was found in a file, if it is as it was."""
        entry = self._known.get(name)
        if entry is None:
            return None
        try:
            mark, lines, findings, allowed, wrong = entry
            if mark != _mark(path):
                return None
            rules = {int(line): frozenset(names) for line, names in allowed.items()}
            result = FileResult(_findings(findings), Waivers(rules, _findings(wrong)), int(lines))
        except (TypeError, ValueError, AttributeError, OSError):
            return None
        self._seen[name] = entry
        return result

    def put(self, path: Path, name: str, result: FileResult) -> None:
        """Remember what was found in a file."""
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            self._seen[name] = [
                _mark(path),
                result.lines,
                [astuple(one) for one in result.findings],
                {line: sorted(rules) for line, rules in result.waivers.allowed.items()},
                [astuple(one) for one in result.waivers.wrong],
            ]

    def write(self) -> None:
        """Keep what was remembered, and what is still known of files that were not asked about."""
        if self._path is None or all(self._known.get(name) is entry for name, entry in self._seen.items()):
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._path.with_suffix(f".{os.getpid()}")
            document = {"stamp": self._stamp, "files": {**self._known, **self._seen}}
            fresh.write_text(json.dumps(document), encoding="utf-8")
            fresh.replace(self._path)


def _findings(entries: Sequence[Sequence[Any]]) -> tuple[Finding, ...]:
    return tuple(Finding(*one) for one in entries)


def _mark(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_mtime_ns, status.st_size]


def _stamp() -> str:
    """What a result depends on beside its file: the rules and the Python that parses."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    states = [f"{one.name}:{one.stat().st_mtime_ns}:{one.stat().st_size}" for one in sources]
    return hashlib.sha256("\n".join([sys.version, *states]).encode()).hexdigest()
