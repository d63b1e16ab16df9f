"""What an audit found: as text, as JSON, and as SARIF for code hosts."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass

from devicekit.devtools.audit.rules import RULES, Finding

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
        lines = [
            f"{one.path}:{one.line}:{one.column}: {one.rule} {RULES[one.rule].title}: {one.what}"
            for one in self.new
        ]
        lines += [f"{one.path}:{one.line or 1}: unused: {one.reason}" for one in self.unused]
        counts = Counter(one.rule for one in self.new)
        for rule in RULES.values():
            if counts[rule.id]:
                lines.append(f"{counts[rule.id]:6} {rule.id} {rule.title}; instead: {rule.instead}")
        score = "unknown" if self.score is None else f"{self.score:.1f} %"
        lines.append(
            f"{len(self.new)} new, {len(self.accepted)} accepted, {len(self.waived)} waived in {self.files} files "
            f"({self.lines} lines of code); portability {score}"
        )
        return "\n".join(lines)

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


def _result(finding: Finding, suppression: str | None) -> dict[str, object]:
    region = {"startLine": finding.line, "startColumn": finding.column}
    location = {"physicalLocation": {"artifactLocation": {"uri": finding.path}, "region": region}}
    result: dict[str, object] = {
        "ruleId": finding.rule,
        "level": "error",
        "message": {"text": f"{RULES[finding.rule].title}: {finding.what}"},
        "locations": [location],
    }
    if suppression is not None:
        result["suppressions"] = [{"kind": suppression}]
    return result
