"""What a hook is: its kind, its signature in every contract version, and how one is declared."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

import pluggy
from packaging.version import Version

PROJECT = "devicekit"

_hookspec = pluggy.HookspecMarker(PROJECT)

_F = TypeVar("_F", bound=Callable[..., object])
_MARK = "_devicekit_hook"


class HookKind(enum.Enum):
    """What a device does when a backend does not implement a hook."""

    REQUIRED = "required"  # the registry refuses the plugin
    ORDERING = "ordering"  # UnsupportedHook: correctness depends on it
    RELEASING = "releasing"  # nothing happens and the result says so
    OBSERVING = "observing"  # the value is unknown: None


@dataclass(frozen=True, slots=True)
class HookSpec:
    """One hook of the contract."""

    name: str
    kind: HookKind
    group: str  # the heading it stands under in the reference
    since: str  # the contract version that introduced it
    parameters: tuple[str, ...]
    declaration: str  # with types, as in "synchronize(index: int) -> None"
    returns: str  # the annotation's text
    doc: str
    # Appended parameter -> contract version. None and False ask for nothing: a plugin that predates the parameter
    # is then called without it, and any other value raises UnsupportedHook.
    added: Mapping[str, str] = field(default_factory=dict)

    @property
    def signature(self) -> str:
        """Name and parameters, as error messages give them."""
        return f"{self.name}({', '.join(self.parameters)})"

    def parameters_at(self, contract: Version) -> tuple[str, ...]:
        """The parameters of a contract version: later versions only append."""
        oldest = Version(self.since)
        return tuple(
            name
            for name in self.parameters
            if name not in self.added or Version(self.added[name]) <= max(contract, oldest)
        )


def hook(
    kind: HookKind, group: str, *, since: str = "1.0", added: Mapping[str, str] | None = None
) -> Callable[[_F], _F]:
    """Declare a hook of the contract.

    Args:
        kind: what happens where a backend lacks it.
        group: the heading it stands under in the reference.
        since: the contract version that introduced the hook.
        added: for each parameter appended later, the contract version that appended it.
    """

    def mark(function: _F) -> _F:
        setattr(function, _MARK, (kind, group, since, added or {}))
        return _hookspec(firstresult=True)(function)

    return mark


def collect(spec: type) -> Mapping[str, HookSpec]:
    """The hooks that a class declares, by name, in the order of the class."""
    hooks: dict[str, HookSpec] = {}
    for name, function in vars(spec).items():
        if (marked := getattr(function, _MARK, None)) is None:
            continue
        kind, group, since, added = marked
        signature = inspect.signature(function)
        own = list(signature.parameters.values())[1:]
        hooks[name] = HookSpec(
            name,
            kind,
            group,
            since,
            parameters=tuple(parameter.name for parameter in own),
            declaration=f"{name}({', '.join(_typed(one) for one in own)}) -> {signature.return_annotation}",
            returns=signature.return_annotation,
            doc=inspect.getdoc(function) or "",
            added=MappingProxyType(dict(added)),
        )
    return MappingProxyType(hooks)


def _typed(parameter: inspect.Parameter) -> str:
    return f"{parameter.name}: {parameter.annotation}"
