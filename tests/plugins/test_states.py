"""Each hook before initialisation, in a forked child and without hardware: no zeros and no initialising."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch

from devicekit.contract import AllocatorState, HostMemoryStats, MemoryInfo, MemoryStats
from tests.plugins.support import VENDORS, Bench, Make

_NUMBERS = [
    field.name for field in dataclasses.fields(MemoryStats) if field.name not in ("state", "source", "raw")
]


def _known(stats: MemoryStats) -> list[str]:
    return [name for name in _NUMBERS if getattr(stats, name) is not None]


def test_asking_for_hardware_neither_initialises_nor_poisons_fork(bench: Bench) -> None:
    assert bench.backend.is_available() is True
    assert bench.backend.device_count() == 2
    assert not bench.driver.initialised
    assert not bench.driver.poisons_fork


@pytest.mark.parametrize("vendor", VENDORS)
def test_without_hardware_the_backend_is_unavailable_and_counts_none(vendor: str, make: Make) -> None:
    backend = make(vendor, cards=0).backend
    assert backend.is_available() is False
    assert backend.device_count() == 0


@pytest.mark.parametrize("vendor", ["cuda", "rocm", "xpu"])
def test_a_torch_built_for_nobody_has_no_devices(vendor: str, make: Make) -> None:
    bench = make(vendor)
    bench.double.flavour.compiled = False
    assert bench.backend.is_available() is False
    assert bench.backend.device_count() == 0


@pytest.mark.parametrize(
    ("cuda", "hip", "musa"),
    [(None, "7.0", None), (None, None, "4.3"), (None, None, None), ("13.0", "7.0", None)],
)
def test_cuda_refuses_who_only_answers_to_its_name(
    cuda: str | None, hip: str | None, musa: str | None, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make("cuda")
    for name, value in (("cuda", cuda), ("hip", hip), ("musa", musa)):
        monkeypatch.setattr(torch.version, name, value, raising=False)
    assert bench.backend.is_available() is False
    assert bench.backend.device_count() == 0


def test_an_object_in_torch_cudas_place_is_no_reason_to_fail(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one impersonator leaves there, forwarding every name to its own module."""
    module = make("cuda").double.module

    class Wrapper:
        def __getattr__(self, name: str) -> object:
            return getattr(module, name)

    monkeypatch.setattr(torch, "cuda", Wrapper())
    monkeypatch.setattr(torch.version, "cuda", None)
    plugin = importlib.import_module("devicekit_cuda")
    assert plugin.Backend().is_available() is False


@pytest.mark.parametrize(("vendor", "mark"), [("rocm", "hip"), ("musa", "musa")])
def test_another_vendors_build_of_torch_is_refused(
    vendor: str, mark: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make(vendor)
    monkeypatch.setattr(torch.version, mark, None)
    assert bench.backend.is_available() is False
    assert bench.backend.device_count() == 0


def test_before_initialisation_statistics_are_unknown_and_nothing_is_initialised(bench: Bench) -> None:
    backend = bench.backend
    stats = backend.memory_stats(0)
    assert stats.state is AllocatorState.UNINITIALISED
    assert _known(stats) == []
    for hook, arguments in (
        ("host_memory_stats", ()),
        ("memory_snapshot", (0,)),
        ("is_capturing", (0,)),
        ("empty_cache", ()),
        ("empty_host_cache", ()),
        ("collect_ipc", ()),
        ("reset_peak_memory_stats", (0,)),
        ("synchronize", (0,)),
        ("is_bad_fork", ()),
        ("collective_backend", ()),
        ("profiler_activity", ()),
    ):
        if (function := getattr(backend, hook)) is not None:
            function(*arguments)
    assert not bench.driver.initialised


def test_a_used_device_counts_in_bytes_and_nothing_is_guessed(bench: Bench) -> None:
    bench.driver.allocate(0, 1000)
    stats = bench.backend.memory_stats(0)
    padded = -(-(1000 + bench.driver.padding) // 512) * 512
    assert stats.state is AllocatorState.OK
    assert (stats.requested, stats.allocated, stats.active) == (1000, padded, padded)
    assert stats.reserved == stats.peak_reserved == 2 * 1024**2
    assert stats.source == bench.double.flavour.surface.module
    assert stats.raw["allocated_bytes.all.current"] == padded
    unknown = set(_NUMBERS) - set(_known(stats))
    if bench.name == "xpu":
        assert unknown == {"inactive_split", "num_segments", *(n for n in _NUMBERS if n.startswith("num_"))}
    elif bench.name == "npu" and bench.double.flavour.surface.version == "2.7.1":
        assert unknown == {"num_device_alloc", "num_device_free"}
    else:
        assert unknown == set()


def test_one_device_says_nothing_of_another(bench: Bench) -> None:
    bench.driver.allocate(1, 1000)
    assert bench.backend.memory_stats(0).allocated == 0
    assert bench.backend.memory_stats(1).requested == 1000


def test_a_forked_child_reads_unknown_instead_of_zero(bench: Bench) -> None:
    bench.driver.allocate(0, 1000)
    bench.driver.forked = True
    backend = bench.backend
    stats = backend.memory_stats(0)
    assert stats.state is AllocatorState.BAD_FORK
    assert _known(stats) == []
    assert backend.is_bad_fork() is True
    assert backend.memory_info(0) == MemoryInfo()
    if backend.host_memory_stats is not None:
        assert backend.host_memory_stats() == HostMemoryStats()
    if backend.memory_snapshot is not None:
        assert backend.memory_snapshot(0) is None
    if backend.is_capturing is not None:
        assert backend.is_capturing(0) is False
    for hook in ("empty_cache", "empty_host_cache", "collect_ipc"):
        if (function := getattr(backend, hook)) is not None:
            function()
    backend.reset_peak_memory_stats(0)
    assert bench.driver.cards[0].reserved == 2 * 1024**2


def test_a_forked_child_that_must_wait_gets_the_vendors_error(bench: Bench) -> None:
    bench.driver.allocate(0, 1000)
    bench.driver.forked = True
    with pytest.raises(RuntimeError, match="in forked subprocess") as caught:
        bench.backend.synchronize(0)
    assert bench.backend.classify_error(caught.value).value == "not_initialised"
