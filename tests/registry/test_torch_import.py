"""A torch that cannot be imported is tried once; whoever asks afterwards is told what the first one was."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from devicekit.contract.errors import TorchImportError
from devicekit.registry import torch_import


class _Broken:
    """In the place of whatever finds modules: torch is there, and fails as it is told to."""

    def __init__(self, failures: list[Callable[[], None]]) -> None:
        self.failures = failures
        self.tried = 0

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torch":
            self.tried += 1
            self.failures[min(self.tried, len(self.failures)) - 1]()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as a process has it that has not imported torch."""
    spec = importlib.util.spec_from_file_location("fresh_torch_import", torch_import.__file__)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    monkeypatch.delitem(sys.modules, "torch")
    return made


def _chained() -> None:
    try:
        try:
            raise OSError("libvendor.so.1: cannot open shared object file")
        except OSError as error:
            raise ImportError("an extension\ncannot be loaded") from error
    except ImportError as error:
        raise RuntimeError("initialisation failed") from error


def _circular() -> None:
    first, second, third = ValueError("first"), ValueError("second"), ValueError("third")
    first.__cause__, second.__cause__, third.__cause__ = second, third, second
    raise first


def _raise(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        (_raise(ImportError("no libcudart")), "ImportError: no libcudart See"),
        (_raise(SystemExit("no")), "SystemExit: no See"),
        (
            _chained,
            "RuntimeError: initialisation failed (after OSError: libvendor.so.1: cannot open shared object file)",
        ),
        (_circular, "ValueError: first (after ValueError: third)"),
    ],
)
def test_the_first_failure_is_told_with_what_began_it_however_often_it_is_asked(
    fresh: ModuleType, monkeypatch: pytest.MonkeyPatch, failing: Callable[[], None], said: str
) -> None:
    broken = _Broken([failing, _raise(ImportError("partially initialized module"))])
    monkeypatch.setattr(sys, "meta_path", [broken, *sys.meta_path])
    errors = []
    for _ in range(3):
        with pytest.raises(TorchImportError) as caught:
            fresh.require_torch()
        errors.append(caught.value)
        monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))  # what a failed import may leave
    assert broken.tried == 1
    assert errors[0] is errors[1] is errors[2]
    assert said in str(errors[0])
    assert "devicekit doctor" in str(errors[0])
    assert errors[2].__cause__ is not None


def test_who_ends_the_program_meanwhile_ends_it_and_the_next_try_is_the_first(
    fresh: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = _Broken([_raise(KeyboardInterrupt()), _raise(ImportError("no libcudart"))])
    monkeypatch.setattr(sys, "meta_path", [broken, *sys.meta_path])
    with pytest.raises(KeyboardInterrupt):
        fresh.require_torch()
    with pytest.raises(TorchImportError, match="no libcudart"):
        fresh.require_torch()


def test_a_torch_that_is_there_is_not_imported_again(
    fresh: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    broken = _Broken([_raise(ImportError("asked again"))])
    monkeypatch.setattr(sys, "meta_path", [broken, *sys.meta_path])
    fresh.require_torch()
    assert broken.tried == 0
