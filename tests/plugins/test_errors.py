"""Real messages of each vendor, and near misses: what each means, by type, code, text and cause."""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch

from devicekit.contract import ErrorKind
from devicekit.testing.sim_backend import SimBackend
from devicekit.torchlike import ErrorRules, classify
from tests.odd_errors import ODD_ERRORS, deep, odd
from tests.plugins.support import VENDORS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = Path(__file__).parent / "errors"
_CORPUS = [
    pytest.param(path.stem, entry, id=f"{path.stem}-{number}")
    for path in sorted(_FOLDER.glob("*.toml"))
    for number, entry in enumerate(tomllib.loads(path.read_text(encoding="utf-8"))["error"])
]


def _error(entry: dict[str, object]) -> BaseException:
    name = str(entry.get("type", "RuntimeError"))
    module, _, own = name.rpartition(".")
    places = (torch, builtins, torch.distributed)
    kind = next((getattr(place, name) for place in places if hasattr(place, name)), None)
    if module:  # a library's own, which need not be installed
        kind = type(own, (Exception,), {"__module__": module})
    if kind is None:
        assert name == "AcceleratorError"
        return RuntimeError(entry["text"])  # as torch said it before 2.8, without a code
    error: BaseException = kind(entry["text"])
    if "code" in entry:
        error.error_code = entry["code"]  # type: ignore[attr-defined]
    return error


def _classify(vendor: str, error: BaseException) -> ErrorKind | None:
    module = importlib.import_module(f"devicekit_{vendor}.backend")
    rules: ErrorRules = module.ERRORS if vendor == "cpu" else module.VENDOR.errors
    return classify(error, rules)


@pytest.mark.parametrize(("vendor", "entry"), _CORPUS)
def test_the_corpus(vendor: str, entry: dict[str, object]) -> None:
    found = _classify(vendor, _error(entry))
    assert (found.value if found else "") == entry["kind"]


@pytest.mark.parametrize(("vendor", "entry"), [case for case in _CORPUS if case.values[1]["kind"]])
def test_a_wrapper_does_not_hide_what_it_wraps(vendor: str, entry: dict[str, object]) -> None:
    for explicit in (True, False):
        outer = ValueError("the step failed")
        if explicit:
            outer.__cause__ = _error(entry)
        else:
            outer.__context__ = _error(entry)
        found = _classify(vendor, outer)
        assert found is not None
        assert found.value == entry["kind"]


def test_a_lost_device_outweighs_the_out_of_memory_it_came_with() -> None:
    lost = RuntimeError("level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)")
    oom = torch.OutOfMemoryError("XPU out of memory. Tried to allocate 16.00 GiB.")
    for outer, inner in ((lost, oom), (oom, lost)):
        outer.__context__, inner.__context__ = inner, None
        assert _classify("xpu", outer) is ErrorKind.DEVICE_LOST


def test_a_code_outweighs_the_text_and_a_type_the_code() -> None:
    error = RuntimeError("CUDA error: out of memory")
    error.error_code = 700  # type: ignore[attr-defined]  # as torch.AcceleratorError has it
    assert _classify("cuda", error) is ErrorKind.DEVICE_LOST
    oom = torch.OutOfMemoryError("said in other words")
    assert _classify("cuda", oom) is ErrorKind.OUT_OF_MEMORY


def test_what_was_raised_from_nothing_does_not_inherit_its_context() -> None:
    outer = ValueError("replaced on purpose")
    outer.__context__ = RuntimeError("CUDA error: out of memory")
    outer.__suppress_context__ = True
    assert _classify("cuda", outer) is None


def test_a_chain_that_bites_its_tail_and_an_error_without_words_end_in_none() -> None:
    class Mute(RuntimeError):
        def __str__(self) -> str:
            raise OSError

    first, second = Mute(), RuntimeError("no")
    first.__context__, second.__context__ = second, first
    assert _classify("cuda", first) is None


def _everybody() -> dict[str, Callable[[BaseException], ErrorKind | None]]:
    plugins = {name: partial(_classify, name) for name in ("cpu", *VENDORS)}
    return {**plugins, "sim": SimBackend().classify_error}


@pytest.mark.parametrize("who", _everybody())
def test_no_exception_makes_a_classifier_raise_or_hides_what_it_came_from(who: str) -> None:
    judge = _everybody()[who]
    for name, base, by_cause in product(ODD_ERRORS, (RuntimeError, Exception, KeyError), (True, False)):
        assert judge(odd(name, base)) is None, name
        assert judge(odd(name, base, torch.OutOfMemoryError(), by_cause)) is ErrorKind.OUT_OF_MEMORY, name
        assert judge(odd(name, torch.OutOfMemoryError)) is ErrorKind.OUT_OF_MEMORY, name
    assert judge(deep(torch.OutOfMemoryError("at the bottom"), 10_000)) is ErrorKind.OUT_OF_MEMORY


def test_a_vendors_words_count_where_only_the_code_cannot_be_read() -> None:
    error = odd("error_code raises ValueError")
    error.args = ("CUDA error: out of memory",)
    assert _classify("cuda", error) is ErrorKind.OUT_OF_MEMORY
