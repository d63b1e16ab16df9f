from __future__ import annotations

import inspect
import pickle

import pytest

from devicekit.contract import errors

ALL = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.DeviceKitError)
]


def details_of(kind: type[errors.DeviceKitError]) -> dict[str, object]:
    if issubclass(kind, errors.ContractError):
        return {"backend": "acme", "problems": ("first", "second")}
    if issubclass(kind, errors.DeviceError):
        return {"backend": "acme", "hook": "synchronize"}
    return {"backend": "acme"} if issubclass(kind, errors.SelectionError) else {}


@pytest.mark.parametrize("kind", ALL)
def test_every_error_crosses_a_process_boundary_whole(kind):
    details = details_of(kind)
    copy = pickle.loads(pickle.dumps(kind("what happened", **details)))
    assert type(copy) is kind
    assert str(copy) == "what happened"
    assert vars(copy) == details


def test_the_tree_in_the_docstring_is_the_tree_of_the_code():
    drawn = errors.__doc__ or ""
    for kind in ALL:
        assert kind.__name__ in drawn
    indent = {
        kind: line.index(kind.__name__)
        for kind in ALL
        for line in drawn.splitlines()
        if kind.__name__ in line
    }
    for kind in ALL:
        if kind is not errors.DeviceKitError:
            assert indent[kind] > indent[kind.__bases__[0]]
