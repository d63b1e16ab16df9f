"""Rewrites files: what is certain, or also what is not if the user says so."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from devicekit.contract.text import counted
from devicekit.devtools.audit.chosen import check_name
from devicekit.devtools.audit.files import Source, Unreadable, python_files, read, shown
from devicekit.devtools.audit.findings import Edit, Finding, in_whole_groups
from devicekit.devtools.audit.rules import analyse, collapse
from devicekit.devtools.audit.waivers import waivers_in


@dataclass(slots=True)
class Mended:
    """What a fixing run did, or would do."""

    files: int = 0  # that changed
    edits: int = 0
    left: list[Finding] = field(default_factory=list)  # findings that remain
    changes: Counter[str] = field(default_factory=Counter)  # what behaves differently, by call and in words
    diffs: list[str] = field(default_factory=list)  # unified, one for each file

    @property
    def exit_status(self) -> int:
        """0 if nothing is left to do by hand, otherwise 1."""
        return 1 if self.left else 0

    def as_text(self) -> str:
        """The sums, and what to know about the new code."""
        lines = [
            f"{text} ({'once' if count == 1 else f'{count} times'})"
            for text, count in sorted(self.changes.items())
        ]
        if lines:
            lines.insert(0, "What behaves differently now:")
        lines.append(
            f"{counted(self.edits, 'place')} rewritten in {counted(self.files, 'file')}; "
            f"{len(self.left)} left to do by hand"
        )
        return "\n".join(lines)


def mend(
    paths: Sequence[Path],
    *,
    exclude: Sequence[str] = (),
    unsafe: bool = False,
    device_name: str | None = None,
    write: bool = True,
) -> Mended:
    """Rewrite Python files where that is certain to keep their meaning. Waived lines are left alone.

    Args:
        paths, exclude: as for `audit`.
        unsafe: also make edits whose meaning a person should check.
        device_name: an expression for the device, as in ``device``, ``self.device`` or ``package.module:device``;
            used where its first name is bound. Else the file's own, else ``devicekit.current_device()``.
        write: False changes no file and only tells what would change.

    Raises:
        ConfigurationError: a path does not exist, ``device_name`` is no name, or LibCST is not installed.
    """
    if device_name is not None:
        check_name(device_name)
    done = Mended()
    for path in python_files(paths, exclude):
        try:
            source = read(path)
        except Unreadable:
            continue  # `audit` reports it
        _mend_file(source, done, unsafe, device_name, write)
    return done


def _mend_file(source: Source, done: Mended, unsafe: bool, device_name: str | None, write: bool) -> None:
    from devicekit.devtools.audit.rewrite import rewrite  # which needs LibCST

    name = shown(source.path)
    found = analyse(source.text, name, device_name)
    waivers = waivers_in(source.text, name)
    kept = {(one.line, one.column) for one in found.findings if waivers.cover(one)}
    chosen = (
        edit
        for edit in found.edits
        if (edit.safe or unsafe) and (edit.span[0][0], edit.span[0][1] + 1) not in kept
    )
    edits = in_whole_groups(chosen, found.edits)
    text, made = rewrite(source.text, edits, tidy=source.path.name != "__init__.py")
    left = found.findings
    if made:
        left = analyse(text, name, device_name).findings
        done.files += 1
        done.edits += len(made)
        done.changes.update(_changes(found.findings, made))
        done.diffs.append(_difference(source.text, text, name))
        if write:
            source.write(text)
    again = waivers_in(text, name)
    done.left += [*collapse(one for one in left if not again.cover(one)), *again.wrong]


def _changes(findings: Sequence[Finding], made: Sequence[Edit]) -> list[str]:
    starts = {edit.span[0] for edit in made}
    return [
        f"  {one.what}: {one.changes}"
        for one in findings
        if one.changes and one.fix and (one.line, one.column - 1) in starts
    ]


def _difference(before: str, after: str, name: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{name}", f"b/{name}"
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )
