"""What a device without a plugin can do is found out by trying it, elsewhere where it is not in use, or kept."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from devicekit.contract import ErrorKind
from devicekit.registry.validation import implemented_hooks
from devicekit.torchlike import Findings, GenericBackend
from devicekit.torchlike.facade import lenient_functions
from tests.doubles.partial import Accelerator, VendorFunctions, install_acme


def test_a_device_that_is_not_in_use_is_tried_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = install_acme(monkeypatch, Accelerator("acme"), is_initialized=lambda: False)
    backend = GenericBackend("acme")
    assert shared.calls == []
    assert {"synchronize", "memory_stats"} <= backend.findings.served


def test_hooks_that_were_seen_to_do_nothing_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    functions = {
        **VendorFunctions().functions(),
        "manual_seed": lambda seed: None,
        "get_rng_state": lambda device: None,
    }
    install_acme(monkeypatch, Accelerator("acme"), **functions)
    assert "get_rng_state" in implemented_hooks(GenericBackend("acme", Findings()))
    known = Findings(inert=frozenset(["get_rng_state"]))
    assert "get_rng_state" not in implemented_hooks(GenericBackend("acme", known))


PACKAGE = """
import os
from types import ModuleType

import torch

LOADED_IN = os.getpid()


def device_count():
    assert LOADED_IN == os.getpid(), "a forked child"
    with open({journal!r}, "a") as journal:
        journal.write("asked\\n")
    return 1


module = ModuleType("torch_acme.device")
module.is_initialized = lambda: False
module.is_available = lambda: device_count() > 0
module.device_count = device_count
module.synchronize = lambda device=None: None
module.mem_get_info = lambda device=None: (3, {total})
torch.acme = module
"""


@pytest.fixture
def vendors_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A vendor's package that is installed, which has extended torch in this process too; its device's journal."""
    journal = tmp_path / "journal"
    (tmp_path / "torch_acme.py").write_text(PACKAGE.format(journal=str(journal), total=7))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch, "acme", None, raising=False)
    importlib.import_module("torch_acme")
    yield journal
    sys.modules.pop("torch_acme", None)


def test_a_vendors_package_is_tried_in_a_fresh_process(vendors_package: Path) -> None:
    backend = GenericBackend("acme")
    assert backend.findings.claims == {"driver_memory"}
    assert "asked" in vendors_package.read_text()


def test_a_trial_that_fails_elsewhere_is_told(vendors_package: Path) -> None:
    (vendors_package.parent / "torch_acme.py").write_text("raise OSError('the driver is from another age')")
    with pytest.warns(RuntimeWarning, match="OSError: the driver is from another age"):
        assert GenericBackend("acme").findings == Findings()


def test_findings_that_are_kept_are_not_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = install_acme(monkeypatch, Accelerator("acme"))
    found = GenericBackend("acme").findings
    shared.calls.clear()
    kept = eval(repr(found), {"Findings": Findings, "frozenset": frozenset})
    backend = GenericBackend("acme", kept)
    assert shared.calls == []
    assert implemented_hooks(backend) == implemented_hooks(GenericBackend("acme"))
    bare = implemented_hooks(GenericBackend("acme", Findings()))
    assert {"current_index", "set_index", "device_count"} <= bare
    assert not bare & {"synchronize", "memory_stats"}


def test_a_device_whose_trial_ends_the_process_is_shown_to_do_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_acme(
        monkeypatch, Accelerator("acme"), is_initialized=lambda: False, synchronize=lambda device: None
    )
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: os._exit(3))
    with pytest.warns(
        RuntimeWarning, match=r"torch\.acme was tried in another process, and nothing is known"
    ):
        backend = GenericBackend("acme")
    assert not backend.findings.served
    assert not backend.findings.claims
    assert "synchronize" in implemented_hooks(backend)


def test_an_allocator_that_is_none_is_found_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = install_acme(monkeypatch, Accelerator("acme", fails={"memory_stats", "empty_cache"}))
    backend = GenericBackend("acme")
    hooks = implemented_hooks(backend)
    assert not hooks & {"memory_stats", "empty_cache", "reset_peak_memory_stats", "memory_info"}
    assert "synchronize" in hooks
    assert shared.calls.count("memory_stats") == 1


KEPT = Findings(lenient=frozenset(["set_device", "memory_stats", "of_the_future"]), counting_initialises=True)


def test_counting_that_initialises_is_done_elsewhere_until_the_device_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vendor = VendorFunctions()
    install_acme(monkeypatch, Accelerator("acme"), **vendor.functions())
    backend = GenericBackend("acme", KEPT)
    assert backend.device_count() == 2
    assert backend.is_available()
    assert not vendor.initialised
    assert GenericBackend("acme", Findings()).device_count() == 2
    assert vendor.initialised
    assert backend.device_count() == 2


def test_a_forked_child_is_told_what_its_parent_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    vendor = VendorFunctions()
    install_acme(monkeypatch, Accelerator("acme"), **vendor.functions())
    backend = GenericBackend("acme", KEPT)
    assert backend.device_count() == 2
    monkeypatch.setattr(backend.module, "_is_in_bad_fork", lambda: True)
    monkeypatch.setattr(backend.module, "device_count", lambda: 0)  # as a module says of a forked child
    assert backend.device_count() == 2


def test_counting_elsewhere_that_fails_says_what_was_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> int:
        raise OSError("the driver is from another age")

    functions = {**VendorFunctions().functions(), "device_count": broken, "is_available": lambda: True}
    install_acme(monkeypatch, Accelerator("acme"), **functions)
    with pytest.raises(RuntimeError, match="OSError: the driver is from another age"):
        GenericBackend("acme", KEPT).device_count()


@pytest.mark.parametrize("index", [-7, -1, 2])
def test_a_device_that_is_not_there_is_refused_for_a_lenient_module(
    monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    install_acme(monkeypatch, Accelerator("acme"), **VendorFunctions().functions())
    backend = GenericBackend("acme", KEPT)
    backend.device_count()
    backend.module.device_count()  # in use from here on
    assert backend.memory_stats(1).allocated == 11
    for call in (backend.set_index, backend.memory_stats):
        with pytest.raises(RuntimeError) as caught:
            call(index)
        assert backend.classify_error(caught.value) is ErrorKind.WRONG_DEVICE


def test_what_a_module_lets_pass_is_found_by_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    vendor = VendorFunctions()
    install_acme(monkeypatch, Accelerator("acme"), **vendor.functions())
    module = GenericBackend("acme", Findings()).module
    assert lenient_functions(module) == {
        "memory_stats",
        "reset_peak_memory_stats",
        "set_device",
        "synchronize",
    }


def test_torch_is_not_asked_for_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    class Careless(Accelerator):
        """Hands every index to an allocator that looks it up without a check."""

        def memory_stats(self, device_index: object = None, /) -> dict[str, int]:
            asked.append(device_index)
            return super().memory_stats(device_index)

    install_acme(monkeypatch, Careless("acme"))
    known = Findings(served=frozenset({"memory_stats", "reset_peak_memory_stats", "mem_get_info"}))
    module = GenericBackend("acme", known).module
    assert known.served <= lenient_functions(module)
    assert not asked
    backend = GenericBackend("acme", replace(known, lenient=lenient_functions(module)))
    with pytest.raises(RuntimeError) as caught:
        backend.memory_stats(5)
    assert backend.classify_error(caught.value) is ErrorKind.WRONG_DEVICE


def test_the_author_of_a_plugin_that_is_tried_each_time_is_told_what_to_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Plugin(GenericBackend):
        pass

    install_acme(monkeypatch, Accelerator("acme"))
    older = Plugin("acme")
    [told] = older.to_the_author
    assert 'print(GenericBackend("acme").findings)' in told
    assert not hasattr(Plugin("acme", older.findings), "to_the_author")
    assert not hasattr(GenericBackend("acme"), "to_the_author")  # nobody wrote that one
