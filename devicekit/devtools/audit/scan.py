"""Audits files and folders, and sorts findings into new, waived in the code, and accepted before."""

from __future__ import annotations

import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from devicekit.contract.errors import ConfigurationError
from devicekit.devtools.audit.accepted import Accepted
from devicekit.devtools.audit.report import AuditReport, Unused
from devicekit.devtools.audit.rules import RULES, Finding, findings_in

_WAIVER = re.compile(r"#\s*devicekit:\s*allow(?:\[(?P<rules>[\w\s,]*)\])?")
_SKIPPED = frozenset({"__pycache__", "build", "dist", "node_modules", "site-packages", "venv"})


def audit(
    paths: Sequence[Path], *, exclude: Sequence[str] = (), accepted: Accepted | None = None
) -> AuditReport:
    """Audit Python files.

    Args:
        paths: files, or folders with all their ``*.py`` below; hidden folders and environments are left out.
        exclude: shell patterns; a file whose path matches one is left out.
        accepted: findings that were there before and are not counted again.

    Raises:
        ConfigurationError: a path does not exist, or a waiver names no rule.
    """
    fresh: list[Finding] = []
    waived: list[Finding] = []
    unused: list[Unused] = []
    lines: Counter[str] = Counter()
    marked: set[str] = set()  # files with findings, waived or not
    for path in _files(paths, exclude):
        name = path.as_posix()
        text = _read(path)
        lines[name] = _lines_of_code(text)
        allowed = _waivers(text, name)
        used: set[int] = set()
        for finding in findings_in(text, name):
            marked.add(name)
            if finding.rule in allowed.get(finding.line, ()):
                used.add(finding.line)
                waived.append(finding)
            else:
                fresh.append(finding)
        unused += [Unused(name, line, "waiver allows nothing") for line in allowed if line not in used]
    new, known, gone = (fresh, [], []) if accepted is None else accepted.split(fresh)
    portable = sum(count for name, count in lines.items() if name not in marked)
    return AuditReport(
        new=tuple(new),
        accepted=tuple(known),
        waived=tuple(waived),
        unused=(*unused, *gone),
        files=len(lines),
        lines=lines.total(),
        portable_lines=portable,
    )


def _files(paths: Sequence[Path], exclude: Sequence[str]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise ConfigurationError(f"There is no {path} to audit.")
        found = [path] if path.is_file() else sorted(path.rglob("*.py"))
        for one in found:
            parts = one.relative_to(path).parts[:-1]
            hidden = any(part.startswith(".") or part in _SKIPPED for part in parts)
            if not hidden and not any(fnmatch(one.as_posix(), pattern) for pattern in exclude):
                yield one


def _read(path: Path) -> str:
    with tokenize.open(path) as file:
        return file.read()


def _lines_of_code(text: str) -> int:
    return sum(1 for line in map(str.strip, text.splitlines()) if line and not line.startswith("#"))


def _waivers(text: str, path: str) -> dict[int, frozenset[str]]:
    """The rules that comments allow, by line."""
    found: dict[int, frozenset[str]] = {}
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):  # reported as DK000
        return found
    for token in tokens:
        if token.type != tokenize.COMMENT or (matched := _WAIVER.search(token.string)) is None:
            continue
        names = matched["rules"]
        rules = frozenset(RULES) if names is None else frozenset(map(str.strip, names.split(",")))
        if unknown := rules - frozenset(RULES):
            raise ConfigurationError(
                f"{path}:{token.start[0]} allows {', '.join(sorted(unknown))}, which is no rule. "
                f"Rules are {', '.join(RULES)}."
            )
        found[token.start[0]] = rules
    return found
