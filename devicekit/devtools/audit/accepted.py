"""Findings that a project has accepted for now: kept in a file, so that only new ones fail."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from devicekit.contract.errors import ConfigurationError
from devicekit.devtools.audit.findings import Finding
from devicekit.devtools.audit.report import Unused
from devicekit.documents import read_json
from devicekit.files import UnreadableFile

# A finding keeps its identity when lines move: its file, rule and the text of its line.
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Accepted:
    """How many findings of each identity are accepted."""

    counts: Counter[Key]

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Accepted:
        """Accept these findings."""
        return cls(Counter(map(_key, findings)))

    @classmethod
    def read(cls, path: Path) -> Accepted:
        """Read what `write` wrote.

        Raises:
            ConfigurationError: the file cannot be read, or is none.
        """
        try:
            entries = cast("Any", read_json(path))["accepted"]
            return cls(Counter(dict(map(_entry, entries))))
        except UnreadableFile as error:
            raise ConfigurationError(f"The accepted findings cannot be read: {error}") from error
        except (KeyError, TypeError) as error:
            raise ConfigurationError(f"{path} is no file of accepted findings: {error!r}") from error

    def write(self, path: Path) -> None:
        """Write as JSON, sorted, for version control."""
        entries = [
            {"path": where, "rule": rule, "source": source, "count": count}
            for (where, rule, source), count in sorted(self.counts.items())
        ]
        path.write_text(json.dumps({"accepted": entries}, indent=1) + "\n", encoding="utf-8")

    def split(self, findings: Sequence[Finding]) -> tuple[list[Finding], list[Finding], list[Unused]]:
        """New findings, accepted ones, and entries of the file that no finding matches any more."""
        left = Counter(self.counts)
        new: list[Finding] = []
        known: list[Finding] = []
        for finding in findings:
            if left[_key(finding)] > 0:
                left[_key(finding)] -= 1
                known.append(finding)
            else:
                new.append(finding)
        gone = [
            Unused(path, None, f"accepted {rule} is gone: {source}")
            for (path, rule, source), count in sorted(left.items())
            if count > 0
        ]
        return new, known, gone


def _entry(one: Mapping[str, object]) -> tuple[Key, int]:
    path, rule, source, count = (one[name] for name in ("path", "rule", "source", "count"))
    if not isinstance(path, str) or not isinstance(rule, str) or not isinstance(source, str):
        raise TypeError("path, rule and source are texts")
    if type(count) is not int:
        raise TypeError("a count is a whole number")
    return (path, rule, source), count


def _key(finding: Finding) -> Key:
    return finding.path, finding.rule, finding.source
