"""Makes an honest backend that is unusual: another machine, other answers, or fewer hooks."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from devicekit.contract import CAPABILITIES
from devicekit.contract.hooks import HOOKS, hookimpl
from devicekit.contract.manifest import Manifest
from devicekit.testing import GIB, SimConfig, Simulator, active, sim_backend
from devicekit_conformance.selftest.building import Body, faulty
from devicekit_conformance.selftest.honest import Honest

__all__ = ["Freedom", "build"]


@dataclass(frozen=True)
class Freedom:
    """One way to be unusual: another machine, other answers, or hooks left out."""

    says: str
    config: Mapping[str, Any] = field(default_factory=dict)
    bodies: Mapping[str, Body] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    denied: frozenset[str] = frozenset()  # capabilities
    arrange: Callable[[], object] = lambda: None
    taken_back: frozenset[str] = frozenset()  # hooks of the class that its object sets to None
    members: Mapping[str, Any] = field(
        default_factory=dict
    )  # of the class, whatever the contract knows of them
    manifest: Mapping[str, Any] = field(default_factory=dict)  # fields that say something else


def build(chosen: Sequence[Freedom]) -> type[Any]:
    """The class of a backend with these freedoms, on a machine that this makes the process's own."""
    config: dict[str, Any] = {"capacity": 16 * GIB, "fill_uninitialized": False}
    for one in chosen:
        config.update(one.config)
    active.replace(Simulator(SimConfig(**config)))
    for one in chosen:
        one.arrange()
    without = frozenset().union(*(one.without for one in chosen))
    bodies = {
        name: body
        for one in chosen
        for name, body in one.bodies.items()
        if name not in without and hasattr(Honest, name)  # what the honest backend lacks, it does not gain
    }
    made: type[Any] = faulty(bodies, manifest=_manifest(chosen, without))
    made = _hiding(made, without) if without else made
    members = {name: member for one in chosen for name, member in one.members.items() if name not in without}
    taken_back = frozenset().union(*(one.taken_back for one in chosen)) - without
    return _taking_back(made, members, taken_back) if members or taken_back else made


def _manifest(chosen: Sequence[Freedom], without: frozenset[str]) -> Manifest:
    manifest = sim_backend.manifest()
    denied = frozenset().union(*(one.denied for one in chosen))
    founded = {
        name
        for name in manifest.capabilities
        if not without & set(CAPABILITIES[name].hooks) and name not in denied
    }
    said = {key: value for one in chosen for key, value in one.manifest.items()}
    return dataclasses.replace(
        manifest, capabilities=frozenset(founded), noop=manifest.noop - without, **said
    )


def _taking_back(made: type[Any], members: Mapping[str, Any], hooks: frozenset[str]) -> type[Any]:
    def construct(self: Any) -> None:
        made.__init__(self)
        for name in hooks:
            setattr(self, name, None)

    return type("Unusual", (made,), {**members, "__init__": construct})


def _hiding(made: type[Honest], without: frozenset[str]) -> type[Any]:
    """A class of its own that has the others' hooks only."""

    def forwarding(name: str) -> Callable[..., object]:
        inherited = getattr(made, name)

        def method(self: Any, *arguments: Any) -> object:
            return inherited(self._inner, *arguments)

        method.__name__ = name
        method.__signature__ = _signature(name)  # type: ignore[attr-defined]  # what inspect reads
        return hookimpl(method)

    def construct(self: Any) -> None:
        self._inner = made()

    kept = [name for name in HOOKS if name not in without and hasattr(made, name)]
    namespace: dict[str, object] = {name: forwarding(name) for name in kept}
    namespace.update(__init__=construct, manifest=made.manifest)
    return type("Unusual", (), namespace)


def _signature(name: str) -> inspect.Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature([inspect.Parameter(one, kind) for one in ("self", *HOOKS[name].parameters)])
