"""Makes a faulty backend out of an honest one: a hook's method is replaced by one that may call the honest one."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from devicekit.contract import records
from devicekit.contract.hooks import HOOKS, hookimpl
from devicekit_conformance.selftest.honest import Honest

__all__ = [
    "FIELDS",
    "RECORDS",
    "Body",
    "Call",
    "Unmakeable",
    "faulty",
    "neutral",
    "returned_record",
    "takes_index",
]


@dataclass
class Call:
    """One call of a faulty hook, as its body sees it."""

    backend: Any
    honest: Callable[..., Any]  # the honest hook, bound
    arguments: tuple[Any, ...]
    number: int  # of this call among those of this hook and this process, from 1
    memory: dict[str, Any]  # the fault's own, for the life of the process

    def forward(self) -> Any:
        """What the honest backend does."""
        return self.honest(*self.arguments)


Body: TypeAlias = Callable[[Call], Any]

RECORDS: Mapping[str, type] = {
    name: kind
    for name, kind in vars(records).items()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == records.__name__
}


def faulty(bodies: Mapping[str, Body], **attributes: object) -> type[Honest]:
    """A backend whose hooks of these names run these bodies."""
    namespace: dict[str, object] = dict(attributes)
    for name, body in bodies.items():
        namespace[name] = _method(name, body)
    return type("Derived", (Honest,), namespace)


def _method(name: str, body: Body) -> Callable[..., object]:
    count = itertools.count(1)
    memory: dict[str, Any] = {}

    def method(self: Any, *arguments: Any) -> object:
        honest = functools.partial(getattr(Honest, name), self)
        return body(Call(self, honest, arguments, next(count), memory))

    own = [
        inspect.Parameter(one, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for one in ("self", *HOOKS[name].parameters)
    ]
    method.__name__ = name
    method.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]  # what inspect reads
    return hookimpl(method)


def takes_index(hook: str) -> bool:
    return "index" in HOOKS[hook].parameters


def returned_record(hook: str) -> type | None:
    """The record that the hook returns, by its annotation."""
    return next((kind for name, kind in RECORDS.items() if HOOKS[hook].returns == name), None)


FIELDS: Mapping[str, tuple[str, ...]] = {
    hook: tuple(
        one.name
        for one in dataclasses.fields(record)
        if "int" in str(one.type) and "Mapping" not in str(one.type)
    )
    for hook in HOOKS
    if (record := returned_record(hook)) is not None
}
"""By hook: the fields of its record that are numbers."""

_PLAIN: Mapping[str, object] = {"None": None, "bool": False, "int": 0, "str": "", "str | None": ""}


class Unmakeable(Exception):
    """There is no value that stands for "nothing" here."""


def neutral(hook: str) -> object:
    """What a hook returns that does nothing and knows nothing.

    Raises:
        Unmakeable: it returns a handle, and there is no such thing.
    """
    told = HOOKS[hook].returns
    if told in _PLAIN:
        return _PLAIN[told]
    if "Sequence" in told:
        return []
    record = returned_record(hook)
    if record is not None:
        zeros = dict.fromkeys(FIELDS[hook], 0)
        if record is records.MemoryStats:
            zeros["state"] = records.AllocatorState.OK  # type: ignore[assignment]
        return record(**zeros)
    if told.endswith("| None"):
        return None
    raise Unmakeable(hook)
