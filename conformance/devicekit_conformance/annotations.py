"""Tells a GitHub workflow what a report says: annotations on the pull request, a step summary, and outputs.

``python -m devicekit_conformance.annotations out/report.json``; `conformance/action.yml` calls it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from devicekit_conformance.plain_text import plain
from devicekit_conformance.target import UsageError
from devicekit_conformance.verify import read_report

_MOST = 10  # annotations of one kind that GitHub shows of a step
_BAD = ("fail", "error", "stale-waiver")


def commands(report: Mapping[str, object]) -> Iterator[str]:
    """One workflow command a failure; what is blocked or could not be judged is one notice together."""
    rows = _rows(report)
    bad = [row for row in rows if row["status"] in _BAD]
    binding = [row for row in bad if row["level"] == "MUST" or row["status"] == "stale-waiver"]
    for row in binding[:_MOST]:
        yield _command("error", f"{row['id']}: {row['sentence']}", str(row["message"]))
    for row in [row for row in bad if row not in binding][:_MOST]:
        yield _command("warning", f"{row['id']}: {row['sentence']}", str(row["message"]))
    open_rows = [row for row in rows if row["status"] in ("blocked", "not-run") and row["level"] == "MUST"]
    if open_rows:
        yield _command("notice", "not judged", ", ".join(str(row["id"]) for row in open_rows))


def summary(report: Mapping[str, object]) -> str:
    """The report as a section of Markdown."""
    backend = report.get("backend")
    name = backend.get("name") or backend.get("address") if isinstance(backend, dict) else "?"
    counts = report.get("counts")
    told = ", ".join(f"{n} {key}" for key, n in counts.items() if n) if isinstance(counts, dict) else ""
    tier = "" if report.get("tier") == "none" else f", tier {report.get('tier')}"
    lines = [
        f"## devicekit conformance: {_cell(name)}",
        "",
        f"**{_cell(report.get('verdict'))}**{tier} ({told})",
        "",
    ]
    reasons = report.get("tier_reasons")
    if isinstance(reasons, list) and reasons:
        lines += [f"Experimental because: {_cell('; '.join(map(str, reasons)))}.", ""]
    failed = [row for row in _rows(report) if row["status"] in _BAD]
    if failed:
        lines += ["| requirement | level | sentence | reason |", "|---|---|---|---|"]
        lines += [
            f"| {row['id']} | {row['level']} | {_cell(row['sentence'])} | {_cell(row['message'])} |"
            for row in failed
        ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the annotations of a report, and write summary and outputs where GitHub says."""
    path = Path((sys.argv[1:] if argv is None else argv)[0])
    try:
        report = read_report(path)
    except UsageError as error:
        print(_command("error", "devicekit conformance", f"there is no report: {error}"))
        return 0  # the step that judged has failed already
    for line in commands(report):
        print(line)
    _append("GITHUB_STEP_SUMMARY", summary(report))
    verdict, tier = plain(report.get("verdict"), 40), plain(report.get("tier"), 40)
    _append("GITHUB_OUTPUT", f"verdict={verdict}\ntier={tier}\n")
    return 0


def _append(variable: str, text: str) -> None:
    if where := os.environ.get(variable):
        with open(where, "a", encoding="utf-8") as file:
            file.write(text)


def _command(kind: str, title: str, message: str) -> str:
    return f"::{kind} title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    return plain(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _cell(value: object) -> str:
    text = " ".join(plain(value, 400).split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "'")


def _rows(report: Mapping[str, object]) -> list[Mapping[str, object]]:
    rows = report.get("results")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


if __name__ == "__main__":
    sys.exit(main())
