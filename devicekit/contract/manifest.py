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

Where the range of ``contract`` admits a newer contract than this devicekit's, names that are not known yet (keys,
hooks, capabilities) are listed in `Manifest.newer` and ignored; elsewhere they are mistakes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet

from devicekit.contract.capabilities import CAPABILITIES
from devicekit.contract.errors import ManifestError
from devicekit.contract.hooks import HOOKS
from devicekit.contract.manifest_file import line_of, read_manifest
from devicekit.contract.manifest_keys import KeyReader

if TYPE_CHECKING:
    from packaging.requirements import Requirement

FILE_NAME = "backend.toml"
_MOST_PROBE_ORDER = 1_000_000


@dataclass(frozen=True, slots=True)
class Manifest:
    """A backend's manifest, checked.

    In code, each field may be written as in ``backend.toml`` too: a range as text, names as a list.
    """

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
    newer: tuple[str, ...] = ()  # what a newer contract may know and this one ignores, as in "capability 'x'"

    def __post_init__(self) -> None:
        given: dict[str, object] = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        ranges = (given["contract"], given["torch"])
        if any(isinstance(one, str) for one in ranges) or any(
            isinstance(one, list) for one in given.values()
        ):
            table = {key: _as_toml(value) for key, value in given.items() if _is_set(key, value)}
            checked = self.parse({"backend": table})
            for key in given:
                object.__setattr__(self, key, getattr(checked, key))

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read and check a ``backend.toml``.

        Raises:
            ManifestError: the file is missing, too large, is not TOML, or breaks the schema; the message names the
                file, and the line where there is one; ``problems`` has every fault.
        """
        text, document = read_manifest(path)
        return cls._checked(document, where=str(path), text=text)

    @classmethod
    def parse(cls, document: Mapping[str, object]) -> Manifest:
        """Check a manifest given as a mapping, as ``tomllib`` returns it.

        Raises:
            ManifestError: the schema is broken; ``problems`` has every fault.
        """
        return cls._checked(document)

    @classmethod
    def _checked(cls, document: Mapping[str, object], where: str = "", text: str = "") -> Manifest:
        table = document.get("backend")
        if not isinstance(table, dict):
            of = f" {where}" if where else ""
            raise ManifestError(f"The manifest{of} has no [backend] table.", problems=("no [backend] table",))
        reader = KeyReader(table, where, lambda key: line_of(text, key))
        contract = reader.contract("contract")
        reader.refuse_beside(document)
        known = {entry.name for entry in fields(cls)} - {"newer"}
        reader.refuse_unknown(known)
        manifest = cls(
            name=reader.identifier("name"),
            device_type=reader.identifier("device_type"),
            contract=contract,
            torch=reader.specifier("torch"),
            requires=reader.requirements("requires"),
            probe_order=reader.number("probe_order", 100, _MOST_PROBE_ORDER),
            hardware=reader.patterns("hardware"),
            collective_backend=reader.optional_text("collective_backend"),
            visible_devices_variable=reader.optional_text("visible_devices_variable"),
            noop=reader.names("noop", HOOKS, "hook"),
            emulated=reader.names("emulated", HOOKS, "hook"),
            capabilities=reader.names("capabilities", CAPABILITIES, "capability"),
            optional=reader.names("optional", CAPABILITIES, "capability"),
            indexed=reader.value("indexed", bool, True),
            host=reader.value("host", bool, False),
            automatic=reader.value("automatic", bool, True),
            newer=tuple(reader.newer),
        )
        reader.finish()
        return manifest


def _is_set(key: str, value: object) -> bool:
    return key != "newer" and value is not None and value != ""


def _as_toml(value: object) -> object:
    if isinstance(value, SpecifierSet):
        return str(value)
    if isinstance(value, (frozenset, set, tuple, list)):
        return [str(one) for one in value]
    return value
