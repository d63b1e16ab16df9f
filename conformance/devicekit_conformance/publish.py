"""Writes a report in every form: JSON, HTML, JUnit XML and a Markdown badge."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from devicekit_conformance.html_page import page
from devicekit_conformance.target import UsageError

_COLOURS = {
    "conformant": "2e7d32",
    "conformant with waivers": "9e7b00",
    "incomplete": "757575",
    "non-conformant": "b3261e",
}


def write_report(report: Mapping[str, object], where: Path) -> list[Path]:
    """Write ``where`` if it ends in .json or .html; otherwise make it a folder and write every form into it.

    Raises:
        UsageError: it cannot be written there.
    """
    forms = {
        "report.json": json.dumps(report, indent=1) + "\n",
        "report.html": page(report),
        "junit.xml": junit(report),
        "badge.md": badge(report),
    }
    if where.suffix in (".json", ".html"):
        chosen = {where: forms[f"report{where.suffix}"]}
    else:
        chosen = {where / name: text for name, text in forms.items()}
    try:
        _write_whole(chosen)
    except OSError as error:
        raise UsageError(f"The report cannot be written: {error}") from error
    return list(chosen)


def _write_whole(texts: Mapping[Path, str]) -> None:
    """Write every file beside its place first, then put all in place: a reader sees an old or a new one, whole."""
    ready: dict[Path, str] = {}
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
            ) as file:
                ready[path] = file.name
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o644)
        for path in list(ready):
            os.replace(ready[path], path)
            del ready[path]
    finally:
        for name in ready.values():
            with contextlib.suppress(OSError):
                os.unlink(name)


def badge(report: Mapping[str, object]) -> str:
    """A line of Markdown for a README."""
    verdict, tier = str(report["verdict"]), str(report["tier"])
    label = verdict if tier == "none" else f"{verdict} ({tier})"
    text = label.replace("-", "--").replace(" ", "_").replace("(", "%28").replace(")", "%29")
    picture = f"https://img.shields.io/badge/devicekit-{text}-{_COLOURS[verdict]}"
    return f"![devicekit: {label}]({picture})\n"


def junit(report: Mapping[str, object]) -> str:
    """JUnit XML, one test case a requirement.

    What was not judged is an error where it is binding, so that no reader takes it for green. Advice that was not
    followed is no failure.
    """
    backend, results = report["backend"], report["results"]
    name = backend.get("address", "?") if isinstance(backend, dict) else "?"
    rows = results if isinstance(results, list) else []
    suite = ElementTree.Element(
        "testsuite", name=_printable(f"devicekit-conformance {name}"), tests=str(len(rows))
    )
    tally = {"failures": 0, "errors": 0, "skipped": 0}
    for row in rows:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"devicekit_conformance.{row['profile']}", name=row["id"]
        )
        case.set("time", f"{row['seconds']:.4f}")
        kind = _junit_kind(row)
        if kind is not None:
            tag, counter = kind
            tally[counter] += 1
            text = f"{row['level']} {row['status']}: {row['message']}"
            ElementTree.SubElement(case, tag, message=_printable(text)).text = _printable(row["sentence"])
    for counter, number in tally.items():
        suite.set(counter, str(number))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


_JUNIT = {
    "fail": ("failure", "failures"),
    "stale-waiver": ("failure", "failures"),
    "error": ("error", "errors"),
    "n/a": ("skipped", "skipped"),
    "not-run": ("error", "errors"),
    "blocked": ("error", "errors"),
    "waived": ("skipped", "skipped"),
}


def _junit_kind(row: Mapping[str, object]) -> tuple[str, str] | None:
    kind = _JUNIT.get(str(row["status"]))
    binding = row["level"] == "MUST" or row["status"] == "stale-waiver"
    return kind if kind is None or binding else ("skipped", "skipped")


def _printable(text: str) -> str:
    """XML 1.0 has no control characters, and a driver's message may."""
    return "".join(one if one.isprintable() or one in "\n\t" else "�" for one in text)
