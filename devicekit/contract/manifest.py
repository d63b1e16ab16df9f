"""``backend.toml``: what a backend says of itself, readable without importing it or torch.

::

    [backend]
    name = "acme"                       # what users write: get_device("acme:1")
    device_type = "acme"                # torch's device type
    contract = ">=1.0,<2"               # contract versions the plugin was written for
    torch = ">=2.7"                     # optional; PEP 440
    requires = ["torch-acme>=2.5"]      # optional; PEP 508, checked before the plugin is imported
    probe_order = 50                    # lower is asked first; impersonators of another module go before it
    hardware = ["/dev/acme*"]           # optional; paths whose existence shows that the hardware is present
    collective_backend = "accl"         # optional
    visible_devices_variable = "ACME_VISIBLE_DEVICES"  # optional
    noop = []                           # hooks for which doing nothing is right here
    emulated = []                       # hooks implemented without the vendor's help
    capabilities = ["streams"]          # claims, each checked by conformance
    optional = ["graphs"]               # claims that hold where their hooks are present: the SDK's version decides
    indexed = true                      # false where torch knows one device without an index, as for cpu
    host = false                        # true for the host itself: chosen only when nothing else claims hardware
    automatic = true                    # false: used only when asked for by name
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from devicekit.contract.capabilities import CAPABILITIES
from devicekit.contract.errors import ManifestError
from devicekit.contract.hooks import HOOKS

if TYPE_CHECKING:
    from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_NAME = "backend.toml"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Manifest:
    """A backend's manifest, checked."""

    name: str
    device_type: str
    contract: SpecifierSet
    torch: SpecifierSet = field(default_factory=SpecifierSet)
    requires: tuple[Requirement, ...] = ()
    probe_order: int = 100
    hardware: tuple[str, ...] = ()
    collective_backend: str | None = None
    visible_devices_variable: str | None = None
    noop: frozenset[str] = frozenset()
    emulated: frozenset[str] = frozenset()
    capabilities: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    indexed: bool = True
    host: bool = False
    automatic: bool = True

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read and check a ``backend.toml``.

        Raises:
            ManifestError: the file is missing, is not TOML, or breaks the schema; ``problems`` has every fault.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ManifestError(f"The manifest {path} cannot be read: {error}") from error
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ManifestError(f"The manifest {path} is not valid TOML: {error}") from error
        return cls.parse(document)

    @classmethod
    def parse(cls, document: Mapping[str, object]) -> Manifest:
        """Check a manifest given as a mapping, as ``tomllib`` returns it.

        Raises:
            ManifestError: the schema is broken; ``problems`` has every fault.
        """
        table = document.get("backend")
        if not isinstance(table, dict):
            raise ManifestError("The manifest has no [backend] table.", problems=("no [backend] table",))
        reader = _Reader(table)
        reader.refuse_beside(document)
        manifest = cls(
            name=reader.identifier("name"),
            device_type=reader.identifier("device_type"),
            contract=reader.specifier("contract", required=True),
            torch=reader.specifier("torch"),
            requires=reader.requirements("requires"),
            probe_order=reader.value("probe_order", int, 100),
            hardware=tuple(reader.strings("hardware")),
            collective_backend=reader.optional_text("collective_backend"),
            visible_devices_variable=reader.optional_text("visible_devices_variable"),
            noop=reader.names("noop", HOOKS, "hook"),
            emulated=reader.names("emulated", HOOKS, "hook"),
            capabilities=reader.names("capabilities", CAPABILITIES, "capability"),
            optional=reader.names("optional", CAPABILITIES, "capability"),
            indexed=reader.value("indexed", bool, True),
            host=reader.value("host", bool, False),
            automatic=reader.value("automatic", bool, True),
        )
        reader.finish(known={entry.name for entry in fields(cls)})
        return manifest


class _Reader:
    """Takes keys out of one TOML table and collects every problem instead of stopping at the first."""

    def __init__(self, table: Mapping[str, object]) -> None:
        self._table = table
        self._problems: list[str] = []

    def value(self, key: str, kind: type[_T], default: _T) -> _T:
        found = self._table.get(key, default)
        if type(found) is not kind:
            self._problems.append(f"{key} must be {kind.__name__}, not {found!r}")
            return default
        return found

    def optional_text(self, key: str) -> str | None:
        return self.value(key, str, "") or None

    def identifier(self, key: str) -> str:
        text = self._table.get(key)
        if not isinstance(text, str) or not text.isidentifier() or text != text.lower():
            self._problems.append(f"{key} is required: a lower-case identifier, not {text!r}")
            return ""
        return text

    def strings(self, key: str) -> list[str]:
        found = self._table.get(key, [])
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            self._problems.append(f"{key} must be a list of strings, not {found!r}")
            return []
        return found

    def specifier(self, key: str, *, required: bool = False) -> SpecifierSet:
        if required and not self._table.get(key):
            self._problems.append(f'{key} is required: a version range such as ">=1.0,<2"')
            return SpecifierSet()
        text = self.value(key, str, "")
        try:
            return SpecifierSet(text)
        except InvalidSpecifier:
            self._problems.append(f"{key} is not a version range: {text!r}")
            return SpecifierSet()

    def requirements(self, key: str) -> tuple[Requirement, ...]:
        texts = self.strings(key)
        if not texts:
            return ()
        # Most manifests have none, and the parser takes a tenth of the time that importing devicekit takes.
        from packaging.requirements import InvalidRequirement, Requirement

        parsed: list[Requirement] = []
        for text in texts:
            try:
                parsed.append(Requirement(text))
            except InvalidRequirement:
                self._problems.append(f"{key}: {text!r} is not a requirement")
        return tuple(parsed)

    def names(self, key: str, known: Mapping[str, object], what: str) -> frozenset[str]:
        found = self.strings(key)
        for name in found:
            if name not in known:
                self._problems.append(f"{key}: there is no {what} {name!r}{_suggest(name, known)}")
        return frozenset(found)

    def refuse_beside(self, document: Mapping[str, object]) -> None:
        """A key above the [backend] line belongs to no table, and would be ignored in silence."""
        self._problems.extend(
            f"{key!r} stands outside the [backend] table" for key in document if key != "backend"
        )

    def finish(self, known: set[str]) -> None:
        for key in self._table:
            if key not in known:
                self._problems.append(f"there is no key {key!r}{_suggest(key, known)}")
        if self._problems:
            listed = "; ".join(self._problems)
            name = self._table.get("name")
            raise ManifestError(
                f"The manifest of backend {name!r} is wrong: {listed}.",
                backend=name if isinstance(name, str) else "",
                problems=tuple(self._problems),
            )


def _suggest(name: str, known: Mapping[str, object] | set[str]) -> str:
    import difflib  # only a manifest with a mistake needs it

    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
