"""Whether a hook returned what the contract's annotation says, down to the fields of the records in it.

By exact type where a look-alike misleads: a bool is an int, a tensor scalar compares equal to one, and a number of
another library's overflows where an int does not. Amounts are never negative, and fit into 63 bits: vendors say
"unknown" by -1, with a sign or without.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from types import NoneType

import torch

from devicekit.contract.records import (
    AllocatorSetting,
    AllocatorState,
    DeviceProperties,
    ErrorKind,
    HostMemoryStats,
    MemoryInfo,
    MemoryStats,
    ProcessMemory,
    Telemetry,
)
from devicekit.contract.text import shown

RECORDS = (MemoryStats, MemoryInfo, HostMemoryStats, DeviceProperties, Telemetry)
_MOST = 1 << 63

Problem = str | None
"""What is wrong with a result; empty text: nothing of what was allowed; ``None``: nothing is wrong."""


def quick_type(returns: str) -> type | None:
    """The type of results that need no further look; ``None``: look at every one."""
    return NoneType if returns == "None" else next(iter(_PLAIN.get(returns, ())), None)


def problem_finder(returns: str) -> Callable[[object], Problem]:
    """What looks at the results of a hook with this annotation."""
    if (plain := _PLAIN.get(returns)) is not None:
        return lambda found: None if type(found) in plain else ""
    return _FINDERS.get(returns, lambda found: "" if found is None else None)


def _amount(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _reading(value: object) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _pair(value: object) -> bool:
    return type(value) is tuple and len(value) == 2 and all(type(one) is int for one in value)


_FIELDS: Mapping[str, Callable[[object], bool]] = {
    "int": _amount,
    "float": _reading,
    "str": lambda value: type(value) is str,
    "bool": lambda value: type(value) is bool,
    "tuple[int, int]": _pair,
    "AllocatorState": lambda value: type(value) is AllocatorState,
    "Mapping[str, int]": lambda value: isinstance(value, Mapping),
}


def _record(kind: type) -> Callable[[object], Problem]:
    """What looks at one kind of record. An annotation that is not in `_FIELDS` fails where it is written."""
    annotations = {one.name: str(one.type) for one in dataclasses.fields(kind)}
    # Apart and without a call for each, because a record of an allocator has a dozen of them.
    amounts = tuple(name for name, said in annotations.items() if said == "int | None")
    amounts_of = attrgetter(*amounts, "__class__", "__class__")  # of two names and more it answers a tuple
    others = []
    for name, said in annotations.items():
        base, _, optional = said.partition(" | ")
        if name not in amounts:
            others.append((name, _FIELDS[base], bool(optional)))

    def problem(found: object) -> Problem:
        if type(found) is not kind:
            return ""
        wrong = None
        for place, value in enumerate(amounts_of(found)[:-2]):
            if value is not None and not (type(value) is int and 0 <= value < _MOST):
                wrong = amounts[place]
        for name, fits, optional in others:
            value = getattr(found, name)
            if not fits(value) and not (value is None and optional):
                wrong = name
        if wrong is None:
            return None
        value = getattr(found, wrong)
        return f"{wrong} is {shown(value)} ({type(value).__name__})"

    return problem


def _several(one: Callable[[object], Problem]) -> Callable[[object], Problem]:
    def problem(found: object) -> Problem:
        if found is None:
            return None
        if not isinstance(found, Sequence) or isinstance(found, (str, bytes)):
            return ""
        wrong = ((place, one(item), item) for place, item in enumerate(found))
        return next(
            (f"item {place}: {said or shown(item)}" for place, said, item in wrong if said is not None), None
        )

    return problem


def _fits(check: Callable[[object], bool]) -> Callable[[object], Problem]:
    return lambda found: None if check(found) else ""


def _dtypes(found: object) -> bool:
    return found is None or (type(found) is frozenset and all(isinstance(one, torch.dtype) for one in found))


_PLAIN: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "str": (str,),
    "str | None": (str, NoneType),
    "torch.profiler.ProfilerActivity | None": (torch.profiler.ProfilerActivity, NoneType),
    "ErrorKind | None": (ErrorKind, NoneType),
}
_FINDERS: Mapping[str, Callable[[object], Problem]] = {
    **{kind.__name__: _record(kind) for kind in RECORDS},
    "Sequence[ProcessMemory] | None": _several(_record(ProcessMemory)),
    "Sequence[AllocatorSetting] | None": _several(_record(AllocatorSetting)),
    "Sequence[Mapping[str, object]] | None": _several(_fits(lambda item: isinstance(item, Mapping))),
    "frozenset[torch.dtype] | None": _fits(_dtypes),
    "tuple[int, int] | None": _fits(lambda found: found is None or _pair(found)),
    "torch.Tensor": _fits(lambda found: isinstance(found, torch.Tensor)),
}
