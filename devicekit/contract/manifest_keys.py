"""Takes keys out of a manifest's table and collects every problem, instead of stopping at the first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from devicekit.contract.errors import ManifestError
from devicekit.contract.names import misspelling_of, resembling
from devicekit.contract.text import shown
from devicekit.contract.versions import negotiate, reaches_beyond

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,99}")  # what a request for a device can name
_LONGEST = 300  # characters of a range or a requirement
_MOST_PATTERNS = 100
_MOST_WILDCARDS = 2
_T = TypeVar("_T")


class KeyReader:
    """Reads one TOML table.

    Args:
        table: the table.
        where: the file, for messages; empty if there is none.
        line: the line that sets a key, where that is known.

    Attributes:
        newer: names that the plugin's range lets a newer contract know, collected as they are met.
    """

    def __init__(self, table: Mapping[str, object], where: str, line: Callable[[str], int | None]) -> None:
        self._table = table
        self._where = where
        self._line = line
        self._problems: list[str] = []
        self._admits_newer = False
        self.newer: list[str] = []

    def value(self, key: str, kind: type[_T], default: _T) -> _T:
        found = self._table.get(key, default)
        if type(found) is not kind:
            self._note(key, f"{key} must be {kind.__name__}, not {shown(found)}")
            return default
        return found

    def number(self, key: str, default: int, most: int) -> int:
        found = self.value(key, int, default)
        if abs(found) > most:
            self._note(key, f"{key} must be from -{most} to {most}")
            return default
        return found

    def optional_text(self, key: str) -> str | None:
        return self.value(key, str, "") or None

    def identifier(self, key: str) -> str:
        text = self._table.get(key)
        if not isinstance(text, str) or _NAME.fullmatch(text) is None:
            self._note(key, f"{key} is required: a lower-case identifier, not {shown(text)}")
            return ""
        return text

    def strings(self, key: str) -> list[str]:
        found = self._table.get(key, [])
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            self._note(key, f"{key} must be a list of strings, not {shown(found)}")
            return []
        return found

    def contract(self, key: str) -> SpecifierSet:
        """The range of contracts, which also decides what becomes of unknown names."""
        if not self._table.get(key):
            self._note(key, f'{key} is required: a version range such as ">=1.0,<2"')
            return SpecifierSet()
        found = self.specifier(key)
        self._admits_newer = bool(negotiate(found)) and reaches_beyond(found)
        return found

    def patterns(self, key: str) -> tuple[str, ...]:
        """Paths with few wildcards, since each is looked for whenever a backend is chosen."""
        found = tuple(self.strings(key))
        for pattern in found:
            wild = sum(any(sign in part for sign in "*?[") for part in pattern.split("/"))
            if not pattern.startswith("/") or "\0" in pattern or "**" in pattern or wild > _MOST_WILDCARDS:
                self._note(
                    key, f"{key}: {shown(pattern)} is no absolute path with at most two wildcard parts"
                )
                return ()
        if len(found) > _MOST_PATTERNS:
            self._note(key, f"{key} lists more than {_MOST_PATTERNS} paths")
            return ()
        return found

    def specifier(self, key: str) -> SpecifierSet:
        text = self.value(key, str, "")
        if len(text) > _LONGEST:
            self._note(key, f"{key} is longer than {_LONGEST} characters")
            return SpecifierSet()
        try:
            return SpecifierSet(text)
        except InvalidSpecifier:
            self._note(key, f"{key} is not a version range: {shown(text)}")
            return SpecifierSet()

    def requirements(self, key: str) -> tuple[Requirement, ...]:
        texts = self.strings(key)
        if not texts:
            return ()
        # Most manifests have none, and the parser takes a tenth of the time that importing devicekit takes.
        from packaging.requirements import InvalidRequirement, Requirement

        parsed: list[Requirement] = []
        for text in texts:
            if len(text) > _LONGEST:
                self._note(key, f"{key}: {shown(text)} is longer than {_LONGEST} characters")
                continue
            try:
                parsed.append(Requirement(text))
            except (InvalidRequirement, RecursionError):
                self._note(key, f"{key}: {shown(text)} is not a requirement")
        return tuple(parsed)

    def names(self, key: str, known: Mapping[str, object], what: str) -> frozenset[str]:
        """The known names of a list. Unknown ones belong to a newer contract, or are mistakes."""
        return frozenset(name for name in self.strings(key) if self._knows(name, known, what, key))

    def refuse_beside(self, document: Mapping[str, object]) -> None:
        """A key above the [backend] line belongs to no table, and would be ignored in silence."""
        for key, value in document.items():
            if key == "backend":
                continue
            if isinstance(value, dict):
                self._knows(key, ("backend",), "table", None, beside=True)
            else:
                self._problems.append(f"{shown(key)} stands outside the [backend] table")

    def refuse_unknown(self, known: Iterable[str]) -> None:
        names = tuple(known)
        for key in self._table:
            self._knows(key, names, "key", key)

    def finish(self) -> None:
        """Raise `ManifestError` if there was any problem."""
        if self._problems:
            listed = "; ".join(self._problems)
            name = self._table.get("name")
            of = f" of backend {shown(name)}" if name is not None else ""
            where = f" {self._where}" if self._where else ""
            raise ManifestError(
                f"The manifest{where}{of} is wrong: {listed}.",
                backend=name if isinstance(name, str) else "",
                problems=tuple(self._problems),
            )

    def _knows(
        self, name: str, known: Iterable[str], what: str, key: str | None, *, beside: bool = False
    ) -> bool:
        names = tuple(known)
        if name in names:
            return True
        meant = misspelling_of(name, names)
        if meant is None and self._admits_newer:
            self.newer.append(f"{what} {shown(name)}")
            return False
        meant = meant or resembling(name, names)
        hint = f" (did you mean {shown(meant)}?)" if meant else ""
        if beside:
            self._problems.append(f"{shown(name)} stands outside the [backend] table")
        else:
            prefix = "" if what == "key" else f"{key}: "
            self._note(key, f"{prefix}there is no {what} {shown(name)}{hint}")
        return False

    def _note(self, key: str | None, problem: str) -> None:
        line = None if key is None else self._line(key)
        self._problems.append(problem if line is None else f"line {line}: {problem}")
