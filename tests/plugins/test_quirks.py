"""Each trap, switched on in the double: right with the quirk, wrong without it, right without the trap."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import pytest
import torch

from devicekit.contract import MemoryInfo
from devicekit.torchlike import host
from devicekit.torchlike.quirks import Quirk
from tests.doubles.vendors import FLAVOURS, build, install
from tests.plugins.support import Bench, Make

MIB = 1024**2
CAPTURE = "empty_cache asserts in capture"


def _empty_while_capturing(bench: Bench) -> None:
    graph = bench.backend.create_graph(0)
    handle = bench.driver.allocate(0, MIB) or 0
    bench.driver.cards[0].give_back(handle)
    with graph.capture():
        bench.backend.empty_cache()


@pytest.mark.parametrize(
    "case", [("cuda", "2.7.1"), ("rocm", "2.7.1"), ("npu", None), ("musa", None)], ids=str
)
def test_emptying_the_cache_in_a_capture_is_harmless(case: tuple[str, str | None], make: Make) -> None:
    bench = make(*case, traps=[CAPTURE])
    _empty_while_capturing(bench)
    assert bench.driver.cards[0].reserved == 2 * MIB
    bench.backend.empty_cache()
    assert bench.driver.cards[0].reserved == 0
    with pytest.raises(RuntimeError, match="INTERNAL ASSERT"):
        _empty_while_capturing(make(*case, traps=[CAPTURE], without_quirks=["empty-cache-in-capture"]))


def test_versions_that_skip_captures_by_themselves_have_no_such_quirk(make: Make) -> None:
    bench = make("cuda", "2.8.0")
    assert "empty-cache-in-capture" not in {quirk.name for quirk in bench.backend.quirks}
    _empty_while_capturing(bench)
    assert bench.driver.cards[0].reserved == 0


def test_a_thread_without_a_context_empties_the_npus_cache(make: Make) -> None:
    trap, quirk = "empty_cache needs a context", "empty-cache-needs-context"
    for switched_off, traps in (((), [trap]), ((), []), ((quirk,), [])):
        bench = make("npu", traps=traps, without_quirks=switched_off)
        bench.driver.cards[1].give_back(bench.driver.allocate(1, MIB) or 0)
        bench.driver.current, bench.driver.has_context = 1, False
        bench.backend.empty_cache()
        assert bench.driver.cards[1].reserved == 0
        assert bench.driver.current == 1
    bench = make("npu", traps=[trap], without_quirks=[quirk])
    bench.driver.allocate(0, MIB)
    bench.driver.has_context = False
    with pytest.raises(RuntimeError, match="107002") as caught:
        bench.backend.empty_cache()
    assert bench.backend.classify_error(caught.value).value == "not_initialised"


@pytest.mark.parametrize("vendor", ["cuda", "rocm"])
def test_the_async_allocator_reports_what_it_counts_and_has_no_snapshot(vendor: str, make: Make) -> None:
    bench = make(vendor, traps=["async allocator"])
    bench.driver.allocate(0, 1000)
    stats = bench.backend.memory_stats(0)
    assert (stats.allocated, stats.reserved) == (1024, 2 * MIB)
    assert (stats.active, stats.requested, stats.num_ooms, stats.peak_allocated) == (None,) * 4
    assert bench.backend.memory_snapshot is None
    unaware = make(vendor, traps=["async allocator"], without_quirks=["async-allocator-counts-zero"])
    unaware.driver.allocate(0, 1000)
    assert unaware.backend.memory_stats(0).num_ooms == 0
    with pytest.raises(RuntimeError, match="not meaningful"):
        unaware.backend.memory_snapshot(0)


@pytest.mark.parametrize("vendor", ["cuda", "rocm"])
def test_an_integrated_gpus_free_memory_is_the_systems(
    vendor: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "available_memory", lambda: 300 * MIB)
    bench = make(vendor, traps=["free memory is an error"])
    bench.double.flavour.properties["is_integrated"] = 1
    assert bench.backend.memory_info(0) == MemoryInfo(300 * MIB, 1024 * MIB, "os")
    monkeypatch.setattr(host, "available_memory", lambda: 5000 * MIB)
    assert bench.backend.memory_info(0).free == 1024 * MIB
    monkeypatch.setattr(host, "available_memory", lambda: None)
    assert bench.backend.memory_info(0) == MemoryInfo(None, 1024 * MIB, "os")
    unaware = make(vendor, traps=["free memory is an error"], without_quirks=["integrated-memory"])
    unaware.double.flavour.properties["is_integrated"] = 1
    with pytest.raises(RuntimeError, match="invalid argument"):
        unaware.backend.memory_info(0)


def test_an_intel_gpu_that_hides_its_free_memory_tells_its_total_and_is_asked_once(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make("xpu", traps=["free memory is not told"])
    asked: list[int] = []
    refuses = bench.double.module.mem_get_info
    monkeypatch.setattr(
        bench.double.module, "mem_get_info", lambda index: asked.append(index) or refuses(index)
    )
    for index in (0, 1, 0, 1):
        assert bench.backend.memory_info(index) == MemoryInfo(None, 1024 * MIB, "runtime")
    assert asked == [0, 1]
    unaware = make("xpu", traps=["free memory is not told"], without_quirks=["free-memory-not-told"])
    with pytest.raises(RuntimeError, match="available free memory"):
        unaware.backend.memory_info(0)


def test_any_other_failure_to_tell_free_memory_is_passed_on(make: Make) -> None:
    bench = make("xpu", traps=["free memory is an error"])
    with pytest.raises(RuntimeError, match="invalid argument"):
        bench.backend.memory_info(0)


@pytest.mark.parametrize(("version", "typed"), [("2.9.0", False), ("2.10.0", True)])
def test_an_npus_out_of_memory_is_known_with_and_without_its_type(
    version: str, typed: bool, make: Make
) -> None:
    bench = make("npu", version)
    error = bench.double.flavour.out_of_memory(0)
    assert isinstance(error, torch.OutOfMemoryError) is typed
    assert bench.backend.classify_error(error).value == "out_of_memory"


@pytest.mark.parametrize("vendor", FLAVOURS)
def test_running_out_is_counted_and_classified(vendor: str, make: Make) -> None:
    bench = make(vendor)
    assert bench.driver.allocate(0, 2048 * MIB) is None
    assert bench.backend.memory_stats(0).num_ooms == (None if vendor == "xpu" else 1)
    assert bench.backend.classify_error(bench.double.flavour.out_of_memory(0)).value == "out_of_memory"


def test_a_probe_poisons_fork_only_where_the_management_library_fails(make: Make) -> None:
    bench = make("cuda", traps=["management library does not answer"])
    assert bench.backend.is_available()
    assert bench.driver.poisons_fork
    assert "probe-without-nvml-poisons-fork" in {quirk.name for quirk in bench.backend.quirks}


@pytest.mark.parametrize("before", [None, "1", "0"])
@pytest.mark.parametrize("breaks", [False, True])
def test_importing_torch_npu_leaves_autoloading_as_it_was(
    before: str | None, breaks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from devicekit_npu import Backend

    name = "TORCH_DEVICE_BACKEND_AUTOLOAD"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    double = build(FLAVOURS["npu"](None))
    install(monkeypatch, double)
    monkeypatch.delattr(torch, "npu")
    monkeypatch.delitem(sys.modules, "torch_npu")

    class Finder:
        def find_spec(self, name: str, path: object, target: object = None) -> object:
            if name != "torch_npu":
                return None
            os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
            if breaks:
                raise ImportError("libascendcl.so: cannot open shared object file")
            monkeypatch.setattr(torch, "npu", double.module, raising=False)
            monkeypatch.setitem(sys.modules, "torch_npu", ModuleType("torch_npu"))
            from importlib.machinery import ModuleSpec

            return ModuleSpec(name, Loader())

    class Loader:
        def create_module(self, spec: object) -> ModuleType:
            return ModuleType("torch_npu")

        def exec_module(self, module: ModuleType) -> None:
            pass

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    if breaks:
        with pytest.raises(ImportError, match="libascendcl"):
            Backend()
    else:
        assert Backend().device_count() == 2
    assert os.environ.get(name) == before


@pytest.mark.parametrize(
    ("versions", "version", "has_it"),
    [
        ("<2.8", "2.7.1", True),
        ("<2.8", "2.7.1.post2", True),
        ("<2.8", "2.8", False),
        ("<2.8", "2.8.0a0+git1234", False),
        (">=2.10", "2.10.0.dev20250101+cpu", True),
        ("<=2.7.1", "2.7.1.post2+cu128", True),
        ("", "9.9.dev1", True),
    ],
)
def test_a_quirk_is_gated_on_the_release_behind_any_build(versions: str, version: str, has_it: bool) -> None:
    assert Quirk("trap", "It hurts.", "https://example.org", versions).applies_to(version) is has_it
