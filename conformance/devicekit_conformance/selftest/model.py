"""The fault model: every operator at every place of the contract, by addresses that a worker can load.

``devicekit_conformance.selftest.model:OPERATOR__HOOK__VARIANT`` is one derived faulty backend. Nothing is listed:
a new hook, field or method of the contract has its faults as soon as it is declared.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from devicekit_conformance.selftest import operators
from devicekit_conformance.selftest.honest import Honest, machine
from devicekit_conformance.selftest.operators import OPERATORS, Fault, Operator

__all__ = ["PROBE", "Derived", "derived", "held_out", "is_held_out"]

PROBE = "devicekit_conformance.simulated:SimProbe"
_MODULE = "devicekit_conformance.selftest.model"


@dataclass(frozen=True)
class Derived:
    """One derived faulty backend."""

    operator: Operator
    fault: Fault

    @property
    def name(self) -> str:
        parts = (self.operator.name, self.fault.hook or "backend", self.fault.variant)
        return "__".join(re.sub(r"\W", "_", part) for part in parts if part)

    @property
    def address(self) -> str:
        return f"{_MODULE}:{self.name}"


@functools.cache
def derived() -> Mapping[str, Derived]:
    """Every derived faulty backend by its name, in the order of the operators."""
    for module in pkgutil.iter_modules(operators.__path__):
        importlib.import_module(f"{operators.__name__}.{module.name}")
    found: dict[str, Derived] = {}
    for operator in OPERATORS.values():
        for fault in operator.places():
            if fault.hook and not hasattr(Honest, fault.hook):
                continue  # where the honest backend does nothing, nothing can be done wrong
            one = Derived(operator, fault)
            if one.name in found:
                raise ValueError(f"two faults are called {one.name}")
            found[one.name] = one
    if machine().initialized:
        raise RuntimeError("an operator used the simulated device: then every backend would fail in a fork")
    return MappingProxyType(found)


def is_held_out(operator: str) -> bool:
    """Whether requirements are written without a look at this operator's survivors: by a hash of its name."""
    return hashlib.sha256(operator.encode()).digest()[0] % 2 == 1


def held_out() -> tuple[str, ...]:
    """The operators that are measured before they are looked at."""
    derived()
    return tuple(name for name in OPERATORS if is_held_out(name))


def __getattr__(name: str) -> type[Honest]:
    found = derived().get(name) if not name.startswith("__") else None
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found.fault.make()
