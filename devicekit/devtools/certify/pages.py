"""A run as JSON, as a Markdown page, and as an HTML page that opens by itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path

from devicekit.devtools.certify.record import Check, Number, Outcome, Status, write_whole
from devicekit.devtools.certify.surroundings import Surroundings
from devicekit.observe.palette import DARK, LIGHT

_REHEARSAL = (
    "**A rehearsal: no accelerator was at hand.** It shows that the script runs to its end on this stack; its "
    "figures say nothing of any device."
)
_STYLE = """:root {{ color-scheme: light dark; {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
body {{ margin: 2rem auto; max-width: 62rem; padding: 0 1rem; background: var(--background); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--grid); }}
.passed {{ color: var(--release); }} .failed {{ color: var(--reserved); font-weight: 600; }}
pre {{ overflow-x: auto; }}"""


@dataclass(slots=True)
class Document:
    """One run, as far as it has come."""

    surroundings: Surroundings
    rehearsal: bool = False
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """One line: how many parts ended how."""
        counts = {status: sum(one.status is status for one in self.outcomes) for status in Status}
        return ", ".join(
            f"{counts[one]} {one.value}" for one in (Status.PASSED, Status.FAILED, Status.SKIPPED)
        )

    @property
    def device(self) -> dict[str, str]:
        """What the part `info` noted of the device, as pairs."""
        notes = [note for one in self.outcomes if one.part == "info" for note in one.notes]
        pairs = (note.split(": ", 1) for note in notes if ": " in note)
        return {key: value for key, value in pairs if key in ("backend", "device", "driver", "architecture")}

    def as_data(self) -> dict[str, object]:
        """As plain values."""
        return {
            "schema": "devicekit-certify/1",
            "rehearsal": self.rehearsal,
            "device": self.device,
            "surroundings": asdict(self.surroundings),
            "outcomes": [one.as_data() for one in self.outcomes],
        }


def write(document: Document, folder: Path, name: str) -> list[Path]:
    """Write the three files and return their paths."""
    files = {
        f"{name}.json": json.dumps(document.as_data(), indent=1) + "\n",
        f"{name}.md": as_markdown(document),
        f"{name}.html": as_html(document),
    }
    for file, text in files.items():
        write_whole(folder / file, text)
    return [folder / file for file in files]


def facts(document: Document) -> list[tuple[str, str]]:
    """Device, date, command and versions, as pairs to print."""
    about = document.surroundings
    packages = ", ".join(f"{name} {version or '(absent)'}" for name, version in about.packages.items())
    told = list(document.device.items()) or [("device", "unknown")]
    return [
        *told,
        ("date", about.started),
        ("command", f"`{about.command}`"),
        ("revision", about.revision or "unknown"),
        ("Python", about.python),
        ("packages", packages),
        ("system", f"{about.system}, {'unknown' if about.cores is None else about.cores} cores"),
        ("result", document.summary),
        ("took", f"{sum(one.seconds or 0 for one in document.outcomes):.0f} s"),
        ("processor time", f"{sum(one.cpu_seconds or 0 for one in document.outcomes):.0f} s"),
    ]


def as_markdown(document: Document) -> str:
    """The page for the repository."""
    lines = ["# What a device did", ""]
    if document.rehearsal:
        lines += [_REHEARSAL, ""]
    lines += _table(("", ""), facts(document))
    lines += ["", "## Parts", ""]
    rows = [
        (one.part, one.status.value, _seconds(one.seconds), _seconds(one.cpu_seconds), one.reason)
        for one in document.outcomes
    ]
    lines += _table(("part", "result", "took", "processor time", "why"), rows)
    for one in document.outcomes:
        if one.numbers or one.checks or one.notes:
            lines += ["", f"### {one.part}", ""]
            lines += [_check(check) for check in one.checks]
            lines += (
                _table(("figure", "value"), [(n.name, _value(n)) for n in one.numbers]) if one.numbers else []
            )
            lines += ["", "```text", *one.notes, "```"] if one.notes else []
    return "\n".join(lines) + "\n"


def as_html(document: Document) -> str:
    """The same in one file without scripts or assets."""
    style = _STYLE.format(light=_variables(LIGHT), dark=_variables(DARK))
    body = ["<h1>What a device did</h1>"]
    if document.rehearsal:
        body.append(f"<p><strong>{escape(_REHEARSAL.replace('**', ''))}</strong></p>")
    body.append(_html_table((), [(key, value.strip("`")) for key, value in facts(document)]))
    body.append("<h2>Parts</h2>")
    for one in document.outcomes:
        took = _seconds(one.seconds)
        body.append(
            f'<h3>{escape(one.part)}: <span class="{one.status.value}">{one.status.value}</span> {took}</h3>'
        )
        body.append(f"<p>{escape(one.reason)}</p>" if one.reason else "")
        checks = [(_holds(check), check.sentence, check.detail) for check in one.checks]
        body.append(_html_table(("", "check", ""), checks) if checks else "")
        numbers = [(number.name, _value(number)) for number in one.numbers]
        body.append(_html_table(("figure", "value"), numbers) if numbers else "")
        body.append(f"<pre>{escape(chr(10).join(one.notes))}</pre>" if one.notes else "")
    head = f'<meta charset="utf-8"><title>What a device did</title><style>{style}</style>'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in cells)]


def _html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>" if head else ""
    lines = ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table>{top}{''.join(lines)}</table>"


def _check(check: Check) -> str:
    detail = f": {check.detail}" if check.detail else ""
    return f"- {_holds(check)}: {check.sentence}{detail}"


def _holds(check: Check) -> str:
    return {True: "holds", False: "does not hold", None: "undecided"}[check.holds]


def _value(number: Number) -> str:
    if number.value is None:
        return "unknown"
    text = f"{number.value:,}" if isinstance(number.value, int) else f"{number.value:,.4g}"
    return f"{text} {number.unit}".rstrip()


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f} s"


def _variables(palette: Mapping[str, str]) -> str:
    return " ".join(f"--{role}: {colour};" for role, colour in palette.items())
