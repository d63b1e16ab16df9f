"""Waivers: comments that allow a line to name a vendor, and say why."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass, field

from devicekit.devtools.audit.findings import RULES, Finding

_WAIVER = re.compile(r"#\s*devicekit:\s*allow(?:\[(?P<rules>[^\]\n]*)(?P<close>\]?))?")
_ALWAYS = frozenset({"DK000", "DK009"})  # what no comment can allow
ALLOWABLE = frozenset(RULES) - _ALWAYS


@dataclass(frozen=True, slots=True)
class Waivers:
    """What the comments of one file allow."""

    allowed: Mapping[int, frozenset[str]] = field(default_factory=dict)  # rules by line
    wrong: tuple[Finding, ...] = ()  # waivers of rules that do not exist

    def cover(self, finding: Finding) -> bool:
        """Whether the comment on its line allows a finding."""
        return finding.rule in self.allowed.get(finding.line, ())


def waivers_in(text: str, path: str) -> Waivers:
    """The waivers of a file's text."""
    if "devicekit:" not in text:
        return Waivers()
    allowed: dict[int, frozenset[str]] = {}
    wrong: list[Finding] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type != tokenize.COMMENT or (matched := _WAIVER.search(token.string)) is None:
                continue
            names = matched["rules"]
            rules = ALLOWABLE if names is None else frozenset(map(str.strip, names.split(",")))
            line, column = token.start
            if matched["close"] == "":
                rules = frozenset({f"{names}, without a closing bracket"})
            if unknown := sorted(rules - ALLOWABLE):
                what = f"{', '.join(map(repr, unknown))} of {', '.join(sorted(ALLOWABLE))}"
                wrong.append(Finding(path, line, column + 1, "DK009", what, token.line.strip()))
            if rules & ALLOWABLE:
                allowed[line] = rules & ALLOWABLE
    except (tokenize.TokenError, SyntaxError, ValueError, RecursionError):
        pass  # the file is reported as DK000
    return Waivers(allowed, tuple(wrong))
