"""What an audit found: as text, as JSON, and as SARIF for code hosts."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass

from devicekit.contract.text import counted
from devicekit.devtools.audit.findings import RULES, Finding

_SARIF = "https://json.schemastore.org/sarif-2.1.0.json"


@dataclass(frozen=True, slots=True)
class Unused:
    """A waiver, or an accepted finding, that is not needed any more."""

    path: str
    line: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The findings of an audit. It fails if there is a new one."""

    new: tuple[Finding, ...]
    accepted: tuple[Finding, ...]
    waived: tuple[Finding, ...]
    unused: tuple[Unused, ...]
    files: int
    lines: int  # of code, without blank and comment lines
    portable_lines: int  # in files that name no vendor at all

    @property
    def score(self) -> float | None:
        """Portability in percent: the share of code in files that name no vendor; ``None`` without code."""
        return 100 * self.portable_lines / self.lines if self.lines else None

    @property
    def exit_status(self) -> int:
        """0 without new findings, otherwise 1."""
        return 1 if self.new else 0

    def as_text(self) -> str:
        """One line for each new finding, then the sums."""
        lines = self._lines()
        lines += [f"{one.path}:{one.line or 1}: unused: {one.reason}" for one in self.unused]
        counts = Counter(one.rule for one in self.new)
        for rule in RULES.values():
            if counts[rule.id]:
                lines.append(f"{counts[rule.id]:6} {rule.id} {rule.title}; instead: {rule.instead}")
        score = "unknown" if self.score is None else f"{self.score:.1f} %"
        lines.append(
            f"{len(self.new)} new, {len(self.accepted)} accepted, {len(self.waived)} waived "
            f"in {counted(self.files, 'file')} ({counted(self.lines, 'line')} of code); portability {score}"
        )
        safe, unsafe = (sum(one.fix == kind for one in self.new) for kind in ("safe", "unsafe"))
        if safe or unsafe:
            lines.append(f"[*] {safe} can be rewritten with --fix, and {unsafe} more with --unsafe-fixes")
        return "\n".join(lines)

    def as_lines(self) -> str:
        """One line for each new finding and nothing else, for pre-commit and editors."""
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        return [f"{one.path}:{one.line}:{one.column}: {one.rule} {sentence(one)}" for one in self.new]

    def as_statistics(self) -> str:
        """What is called how often: the calls that stand for most of the findings come first."""
        counts: Counter[tuple[str, str]] = Counter((one.rule, one.what) for one in self.new)
        fixed = Counter((one.rule, one.what) for one in self.new if one.fix == "safe")
        advice = {(one.rule, one.what): one.advice for one in self.new}
        so_far = 0
        lines = [" count  fixed   sum  what, and what to write instead"]
        for key, count in counts.most_common():
            so_far += count
            share = f"{100 * so_far / len(self.new):.0f} %"
            lines.append(f"{count:6} {fixed[key]:6} {share:>5}  {key[0]} {key[1]}: {advice[key]}")
        lines.append(
            f"{len(self.new):6} {fixed.total():6}        places, and how many of them --fix rewrites"
        )
        calls = [one for one in self.new if one.rule == "DK001"]
        if calls:
            told = sum(bool(one.instead) for one in calls)
            covered = 100 * told / len(calls)
            lines.append(
                f"{told} of {len(calls)} uses of vendor modules ({covered:.1f} %) have a replacement of their own"
            )
        return "\n".join(lines)

    def as_github(self) -> str:
        """Annotations of GitHub's workflow commands, one a line."""
        return "\n".join(
            f"::error file={_property(one.path)},line={one.line},col={one.column},"
            f"title={_property(f'{one.rule} {RULES[one.rule].title}')}::{_data(f'{one.what}; write {one.advice}')}"
            for one in self.new
        )

    def as_json(self) -> str:
        """The whole report for machines."""
        return json.dumps({"score": self.score, **asdict(self)}, indent=2)

    def as_sarif(self) -> str:
        """SARIF 2.1.0: new findings as errors, waived and accepted ones as suppressed."""
        rules = [
            {
                "id": rule.id,
                "shortDescription": {"text": rule.title},
                "help": {"text": f"Instead: {rule.instead}."},
            }
            for rule in RULES.values()
        ]
        results = [_result(one, None) for one in self.new]
        results += [_result(one, "inSource") for one in self.waived]
        results += [_result(one, "external") for one in self.accepted]
        driver = {"name": "devicekit audit", "rules": rules}
        document = {
            "$schema": _SARIF,
            "version": "2.1.0",
            "runs": [{"tool": {"driver": driver}, "results": results}],
        }
        return json.dumps(document, indent=2)


def sentence(finding: Finding) -> str:
    """What is wrong at one place, and what to write."""
    asked = f" (asked {finding.times} times)" if finding.times > 1 else ""
    mark = "[*] " if finding.fix == "safe" else ""
    instead = f"; write {finding.instead}" if finding.instead else ""
    changes = f" ({finding.changes})" if finding.instead and finding.changes else ""
    return f"{mark}{RULES[finding.rule].title}: {finding.what}{asked}{instead}{changes}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _result(finding: Finding, suppression: str | None) -> dict[str, object]:
    region = {"startLine": finding.line, "startColumn": finding.column}
    location = {"physicalLocation": {"artifactLocation": {"uri": finding.path}, "region": region}}
    result: dict[str, object] = {
        "ruleId": finding.rule,
        "level": "error",
        "message": {"text": f"{RULES[finding.rule].title}: {finding.what}. Write {finding.advice}."},
        "locations": [location],
    }
    if suppression is not None:
        result["suppressions"] = [{"kind": suppression}]
    return result
