"""The report as one HTML page that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from devicekit_conformance.page_style import STYLE
from devicekit_conformance.report import hook_matrix, notices_of
from devicekit_conformance.rulebook import PROFILES

_GOOD = ("conformant", "conformant with waivers")
_TIER_TEXT = {
    "verified": "It passed every default profile without a waiver.",
    "certified": "It passed every profile, several devices and processes included, without a waiver.",
    "none": "No tier is awarded.",
}


def page(report: Mapping[str, object]) -> str:
    """The whole page."""
    backend = _mapping(report["backend"])
    name = str(backend.get("name") or backend.get("address"))
    verdict = str(report["verdict"])
    parts = [
        _head(name, verdict, report, backend),
        _figures(_mapping(report["counts"])),
        _attention(_rows(report["results"])),
        _capabilities(_rows(report["capabilities"]), backend),
        _hooks(hook_matrix(report)),
        *(_profile(profile, _rows(report["results"])) for profile in PROFILES),
        _provenance(report, backend),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(name)}: devicekit conformance</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _head(name: str, verdict: str, report: Mapping[str, object], backend: Mapping[str, object]) -> str:
    kind = "good" if verdict in _GOOD else "open" if verdict == "incomplete" else "bad"
    tier = str(report["tier"])
    distribution = " ".join(str(one) for one in (backend.get("distribution"), backend.get("version")) if one)
    shown = " · ".join(_text(one) for one in (distribution, backend.get("device")) if one)
    badge = "" if tier == "none" else f'<span class="tier">{_text(tier)}</span>'
    return (
        f'<header>\n<p class="eyebrow">devicekit conformance</p>\n<h1>{_text(name)}</h1>\n'
        f'<p class="what">{shown}</p>\n'
        f'<p class="verdict {kind}">{_text(verdict.capitalize())}{badge}</p>\n'
        f'<p class="note">{_text(_meaning(report))}</p>\n</header>'
    )


def _meaning(report: Mapping[str, object]) -> str:
    """What stands under the verdict: the tier in words, or the first cause where there is none."""
    tier = str(report["tier"])
    if tier == "experimental":
        return f"Experimental: {'; '.join(_names(report.get('tier_reasons')))}."
    cause = report.get("first_cause")
    if tier == "none" and isinstance(cause, dict):
        cut = " The run was interrupted." if report.get("interrupted") else ""
        return f"First cause: {cause['id']}, {cause['message']}.{cut}"
    return _TIER_TEXT[tier]


def _figures(counts: Mapping[str, object]) -> str:
    items = [
        f'<li class="{_class(status)}"><b>{number}</b> {_text(status)}</li>'
        for status, number in counts.items()
        if number
    ]
    return f'<ul class="figures">{"".join(items)}</ul>'


def _attention(rows: Sequence[Mapping[str, object]]) -> str:
    """What a reader must know first: everything that failed, is waived, or could not be decided."""
    told = [row for row in rows if row["status"] in ("fail", "error", "stale-waiver", "waived", "not-run")]
    if not told:
        return ""
    items = "".join(
        f"<li>{_pill(row)} <a href='#{_text(row['id'])}'>{_text(row['id'])}</a> "
        f"{_text(row['sentence'])}{_message(row)}</li>"
        for row in told
    )
    return f'<section class="attention">\n<h2>What stands out</h2>\n<ul>{items}</ul>\n</section>'


def _capabilities(rows: Sequence[Mapping[str, object]], backend: Mapping[str, object]) -> str:
    emulated, noop = _names(backend.get("emulated")), _names(backend.get("noop"))
    lines = []
    for row in rows:
        hooks = _mapping(row["hooks"])
        cells = " ".join(
            f'<code class="{"has" if present else "lacks"}">{_text(hook)}</code>'
            for hook, present in hooks.items()
        )
        claimed = bool(row["claimed"])
        mark = '<span class="yes">claimed</span>' if claimed else '<span class="no">not claimed</span>'
        lines.append(f"<tr><th scope='row'>{_text(row['name'])}</th><td>{mark}</td><td>{cells}</td></tr>")
    notes = []
    if emulated:
        notes.append(f"Implemented without the vendor's help: {_codes(emulated)}.")
    if noop:
        notes.append(f"Doing nothing is right here: {_codes(noop)}.")
    note = f'<p class="note">{" ".join(notes)}</p>' if notes else ""
    return (
        "<section>\n<h2>Capabilities</h2>\n"
        '<p class="note">Claims are checked in both directions. A struck-out hook is not implemented.</p>\n'
        '<div class="scroll"><table>\n<thead><tr><th>capability</th><th>claim</th><th>hooks it rests on</th></tr>'
        f"</thead>\n<tbody>{''.join(lines)}</tbody>\n</table></div>\n{note}</section>"
    )


def _hooks(present: Mapping[str, bool]) -> str:
    cells = " ".join(
        f'<code class="{"has" if has else "lacks"}">{_text(name)}</code>' for name, has in present.items()
    )
    count = f"{sum(present.values())} of {len(present)}"
    return f"<section>\n<h2>Hooks <small>{count}</small></h2>\n<p>{cells}</p>\n</section>"


def _profile(profile: str, rows: Sequence[Mapping[str, object]]) -> str:
    own = [row for row in rows if row["profile"] == profile]
    if not own:
        return ""
    lines = "".join(
        f'<tr id="{_text(row["id"])}"><td class="id">{_text(row["id"])}</td><td>{_text(row["level"])}</td>'
        f"<td>{_pill(row)}</td><td>{_text(row['sentence'])}{_message(row)}</td></tr>"
        for row in sorted(own, key=lambda row: str(row["id"]))
    )
    passed = sum(row["status"] == "pass" for row in own)
    applicable = sum(row["status"] != "n/a" for row in own)
    return (
        f"<section>\n<h2>{_text(profile)} <small>{passed} of {applicable}</small></h2>\n"
        f'<p class="note">{_text(PROFILES[profile])}</p>\n'
        '<div class="scroll"><table class="rules">\n'
        "<thead><tr><th>requirement</th><th>level</th><th>result</th><th>sentence</th></tr></thead>\n"
        f"<tbody>{lines}</tbody>\n</table></div>\n</section>"
    )


def _provenance(report: Mapping[str, object], backend: Mapping[str, object]) -> str:
    suite, environment = _mapping(report["suite"]), _mapping(report["environment"])
    pairs: list[tuple[str, object]] = [
        ("backend", backend.get("address")),
        ("devices", backend.get("device_count")),
        ("probe", "the suite's own" if backend.get("probe") == "suite" else backend.get("probe")),
        ("suite", f"{suite.get('version')}, contract {suite.get('contract')}"),
        *environment.items(),
        ("started", report["started"]),
        ("run", report["run_id"]),
        ("suite digest", suite.get("digest")),
        ("report digest", report["digest"]),
    ]
    listed = "".join(
        f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in pairs if value is not None
    )
    told = "".join(f"<p class='note'>To the plugin's author: {_text(one)}</p>" for one in notices_of(report))
    return (
        f"<footer>\n<h2>Provenance</h2>\n<dl>{listed}</dl>\n{told}"
        "<p class='note'>Check this report with <code>devicekit conformance verify report.json</code>.</p>"
        "\n</footer>"
    )


def _pill(row: Mapping[str, object]) -> str:
    return f'<span class="pill {_class(row["status"])}">{_text(row["status"])}</span>'


def _message(row: Mapping[str, object]) -> str:
    told = [row["message"], row.get("why") if row["status"] in ("fail", "waived") else ""]
    text = "".join(f'<span class="message">{_text(one)}</span>' for one in told if one)
    waiver = _mapping(row["waiver"]) if row.get("waiver") else {}
    if waiver:
        link = str(waiver.get("link"))
        text += (
            f'<span class="message">waived until {_text(waiver.get("expires"))}: {_text(waiver.get("reason"))} '
            f'(<a href="{_text(link)}" rel="noopener">{_text(link)}</a>)</span>'
        )
    return text


def _class(status: object) -> str:
    return {"pass": "pass", "fail": "fail", "error": "fail", "stale-waiver": "fail", "waived": "waived"}.get(
        str(status), "quiet"
    )


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"<code>{_text(name)}</code>" for name in names)


def _text(value: object) -> str:
    return escape(str(value), quote=True)


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _rows(value: object) -> Sequence[Mapping[str, object]]:
    return value if isinstance(value, list) else []


def _names(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []
