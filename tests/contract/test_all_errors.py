"""Every error keeps what it was made of, however it was made, and crosses process boundaries whole."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
import types
import typing
from collections.abc import Callable, Iterator, Mapping

import pytest

import devicekit
from devicekit.contract.errors import DeviceKitError
from devicekit.contract.records import ErrorKind
from devicekit.memory.audit import Conservation
from devicekit.scheduling.audit import PoolAudit
from devicekit.weights.rollback import RolledBack

ACCOUNT = Conservation(
    total=5, available=1, evictable=1, protected=1, owned=1, leaked=(4,), doubled=(2,), tree=None
)
VALUES: Mapping[object, object] = {
    int: 3,
    str: "what happened",
    tuple[int, ...]: (2, 3),
    tuple[str, ...]: ("first", "second"),
    dict[int, str]: {1: "no room", 3: "no file"},
    ErrorKind: ErrorKind.OUT_OF_MEMORY,
    PoolAudit: PoolAudit(ACCOUNT, ACCOUNT),
    BaseException: ValueError("the cause"),
}


def _kinds() -> Iterator[type[DeviceKitError]]:
    """Those with fields of their own; modules of packages that are not installed aside."""
    for found in pkgutil.walk_packages(devicekit.__path__, "devicekit."):
        if found.name.startswith("devicekit.ray_serve"):
            continue
        module = importlib.import_module(found.name)
        for one in vars(module).values():
            own = inspect.isclass(one) and one.__module__ == module.__name__
            if own and issubclass(one, DeviceKitError) and "__init__" in vars(one):
                yield one


KINDS = sorted(_kinds(), key=lambda one: one.__name__)


def _arguments(kind: type[DeviceKitError]) -> dict[str, object]:
    hints = typing.get_type_hints(kind.__init__)
    found: dict[str, object] = {}
    for name in inspect.signature(kind).parameters:
        wanted = hints[name]
        options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
        found[name] = next(VALUES[one] for one in options if one in VALUES)
    return found


def _by_name(kind: type[DeviceKitError], arguments: dict[str, object]) -> DeviceKitError:
    return kind(**arguments)  # type: ignore[arg-type]  # by their annotations


def _in_order(kind: type[DeviceKitError], arguments: dict[str, object]) -> DeviceKitError:
    of = inspect.signature(kind).parameters
    named = {
        name: value for name, value in arguments.items() if of[name].kind is inspect.Parameter.KEYWORD_ONLY
    }
    return kind(*(value for name, value in arguments.items() if name not in named), **named)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [_by_name, _in_order])
@pytest.mark.parametrize("kind", KINDS, ids=lambda one: one.__name__)
def test_every_error_keeps_its_fields_and_crosses_process_boundaries(
    kind: type[DeviceKitError], make: Callable[..., DeviceKitError]
) -> None:
    arguments = _arguments(kind)
    error = make(kind, arguments)
    said = str(error)
    assert said
    for name, value in arguments.items():
        assert vars(error)[name] == value if name in vars(error) else str(value) in said, name
    if kind is RolledBack:  # raised and caught in one place
        return
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == said
        assert vars(again) == vars(error)
