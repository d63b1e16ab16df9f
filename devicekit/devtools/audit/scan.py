"""Audits files and folders, and sorts findings into new, waived in the code, and accepted before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from devicekit.devtools.audit.accepted import Accepted
from devicekit.devtools.audit.cache import Cache, FileResult
from devicekit.devtools.audit.files import Unreadable, python_files, read, shown
from devicekit.devtools.audit.findings import Finding
from devicekit.devtools.audit.report import AuditReport, Unused
from devicekit.devtools.audit.rules import analyse, collapse, unreadable
from devicekit.devtools.audit.waivers import Waivers, waivers_in


def audit(
    paths: Sequence[Path],
    *,
    exclude: Sequence[str] = (),
    accepted: Accepted | None = None,
    cache: Cache | None = None,
) -> AuditReport:
    """Audit Python files. A file that cannot be read or parsed is a finding, and the rest goes on.

    Args:
        paths: files, or folders with all their ``*.py`` below; hidden folders and environments are left out.
        exclude: shell patterns; a file whose path matches one is left out.
        accepted: findings that were there before and are not counted again.
        cache: results of files that have not changed.

    Raises:
        ConfigurationError: a path does not exist.
    """
    fresh: list[Finding] = []
    waived: list[Finding] = []
    unused: list[Unused] = []
    lines: Counter[str] = Counter()
    marked: set[str] = set()  # files with findings, waived or not
    for path in python_files(paths, exclude):
        name = shown(path)
        result = cache.get(path, name) if cache is not None else None
        if result is None:
            result = _examine(path, name)
            if cache is not None:
                cache.put(path, name, result)
        lines[name] = result.lines
        used = {one.line for one in result.findings if result.waivers.cover(one)}
        fresh += collapse(one for one in result.findings if not result.waivers.cover(one))
        fresh += result.waivers.wrong
        waived += collapse(one for one in result.findings if result.waivers.cover(one))
        if result.findings:
            marked.add(name)
        unused += [
            Unused(name, line, "waiver allows nothing") for line in result.waivers.allowed if line not in used
        ]
    if cache is not None:
        cache.write()
    new, known, gone = (fresh, [], []) if accepted is None else accepted.split(fresh)
    return AuditReport(
        new=tuple(new),
        accepted=tuple(known),
        waived=tuple(waived),
        unused=(*unused, *gone),
        files=len(lines),
        lines=lines.total(),
        portable_lines=sum(count for name, count in lines.items() if name not in marked),
    )


def _examine(path: Path, name: str) -> FileResult:
    try:
        text = read(path).text
    except Unreadable as error:
        return FileResult((unreadable(name, str(error)),), Waivers(), 0)
    return FileResult(analyse(text, name).findings, waivers_in(text, name), _lines_of_code(text))


def _lines_of_code(text: str) -> int:
    return sum(1 for line in map(str.strip, text.splitlines()) if line and not line.startswith("#"))
