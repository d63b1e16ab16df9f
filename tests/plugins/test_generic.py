"""Devices without a plugin: the vendor's module first, then torch.accelerator, and nothing that neither serves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch

import devicekit
from devicekit.contract import HOOKS, AllocatorState, DeviceProperties, ErrorKind, Manifest, hookimpl
from devicekit.contract.errors import BackendUnavailable, DuplicateBackend, InvalidHooks
from devicekit.device import generic
from devicekit.registry.validation import implemented_hooks
from devicekit.torchlike import Findings, GenericBackend, needs
from devicekit.torchlike.needs import needed
from devicekit_cpu import Backend as HostBackend
from tests.doubles.partial import Accelerator, Mps, VendorFunctions, install_acme
from tests.doubles.surface import Surface, strict_module
from tests.doubles.vendors import FLAVOURS, build
from tests.releases import needs_simulator
from tools.warm import Warm


@pytest.fixture(autouse=True)
def _some_host() -> Iterator[None]:
    """A backend that can be chosen by itself, whatever is installed."""
    table = {"name": "some_host", "device_type": "cpu", "contract": ">=1.0", "indexed": False, "host": True}
    devicekit.register_backend(HostBackend, Manifest.parse({"backend": table}))
    yield
    for name in ("mps", "mtia", "acme", "some_host"):
        devicekit.unregister_backend(name)


def _mps(patch: pytest.MonkeyPatch, *, present: bool = True) -> Mps:
    model = Mps()
    if not present:
        model.is_available = lambda: False  # type: ignore[method-assign]
    patch.setattr(torch, "mps", strict_module(Surface("mps"), model, {}))
    return model


def test_mps_without_hardware_is_offered_by_name_and_never_by_itself() -> None:
    generic.register("mps")
    assert devicekit.select().backend.name != "mps"
    reasons = {report.name: report.reason for report in devicekit.select().candidates}
    assert reasons["mps"] == "it is used only when asked for by name"
    with pytest.raises(BackendUnavailable):
        devicekit.get_device("mps")


def test_a_device_with_hardware_is_still_not_chosen_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    _mps(monkeypatch)
    generic.register("mps")
    assert devicekit.select(policy="lenient").backend.name != "mps"
    assert devicekit.select("mps").backend.name == "mps"
    with pytest.raises(DuplicateBackend):
        generic.register("mps")


def test_mps_is_served_through_functions_without_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _mps(monkeypatch)
    generic.register("mps")
    device = devicekit.get_device("mps")
    device.synchronize()
    assert model.synchronized
    assert device.empty_cache()
    assert model.emptied
    device.set_memory_fraction(0.5)
    assert model.fraction == 0.5
    device.manual_seed(3)
    assert model.seed_given == 3
    stats = device.memory_stats()
    assert (stats.allocated, stats.reserved, stats.peak_allocated, stats.active) == (100, 400, None, None)
    assert stats.source == "torch.mps"
    assert device.properties().total_memory == 1000
    assert device.memory_info().free is None
    absent = (
        "create_stream",
        "create_graph",
        "memory_pool",
        "export_ipc",
        "reset_peak_memory_stats",
        "pin_memory",
    )
    assert not any(device.supports(hook) for hook in absent)


def test_an_unknown_recommended_maximum_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mps, "recommended_max_memory", lambda self: -1)
    _mps(monkeypatch)
    assert GenericBackend("mps").device_properties(0).total_memory is None


def test_mtias_nested_statistics_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        is_initialized=lambda: True,
        _is_in_bad_fork=lambda: False,
        synchronize=lambda device=None: None,
        memory_stats=lambda device=None: {"dram": {"allocated_bytes": 5, "peak_bytes": 9}},
        get_device_properties=lambda device=None: {"name": "MTIA", "total_memory": 64},
    )
    monkeypatch.setattr(torch, "mtia", strict_module(Surface("mtia"), model, {}))
    backend = GenericBackend("mtia")
    stats = backend.memory_stats(0)
    assert (stats.allocated, stats.peak_allocated, stats.reserved) == (5, 9, None)
    assert backend.device_properties(0).name == "MTIA"
    assert backend.profiler_activity() is torch.profiler.ProfilerActivity.MTIA


def test_torch_accelerator_serves_what_the_module_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = install_acme(monkeypatch, Accelerator("acme"))
    backend = GenericBackend("acme")
    shared.calls.clear()
    backend.synchronize(1)
    backend.empty_cache()
    backend.set_index(1)
    backend.reset_peak_memory_stats(1)
    assert shared.calls == ["synchronize", "empty_cache", "set_device_index", "reset_peak_memory_stats"]
    assert backend.current_index() == 1
    info = backend.memory_info(0)
    assert (info.free, info.total) == (3, 7)


def test_a_zero_that_nobody_counts_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = install_acme(monkeypatch, Accelerator("acme"))
    stats = GenericBackend("acme").memory_stats(0)
    assert (stats.allocated, stats.reserved, stats.num_ooms) == (0, 0, None)
    assert stats.source == "torch.accelerator"
    shared.counters["num_ooms"] = 2
    assert GenericBackend("acme").memory_stats(0).num_ooms == 2


def test_every_function_that_a_hook_needs_is_taken_from_the_vendors_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Anything:
        def __call__(self, *given: object) -> int:
            return 1

    wanted = {name for hook in HOOKS for name in needed(GenericBackend, hook)}
    wanted.discard("ipc_collect")  # sharing between processes is the vendor's to know
    module = ModuleType("torch.acme")
    for name in wanted:
        whole, _, part = name.partition(".")
        one = module.__dict__.setdefault(whole, Anything())
        setattr(one, part or "itself", one)
    monkeypatch.setattr(torch, "acme", module, raising=False)
    taken = GenericBackend("acme", Findings()).module
    assert {name for name in wanted if not hasattr(taken, name.partition(".")[0])} == set()


def test_an_event_that_takes_torchs_own_arguments_is_made_as_torchs_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Event(torch.Event):
        pass

    functions = {**VendorFunctions().functions(), "Event": Event}
    install_acme(monkeypatch, Accelerator("acme"), **functions)
    assert "create_event" not in implemented_hooks(GenericBackend("acme", Findings()))
    assert "create_event" in implemented_hooks(GenericBackend("acme", Findings(served=frozenset(["Event"]))))


def test_the_author_of_a_hook_that_is_absent_with_the_one_it_overrides_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Plugin(GenericBackend):
        def __init__(self) -> None:
            super().__init__("acme", Findings())

        @hookimpl
        def device_properties(self, index: int) -> DeviceProperties:
            return DeviceProperties(unified_memory=True)

    class Marked(Plugin):
        device_properties = needs()(lambda self, index: DeviceProperties(unified_memory=True))  # type: ignore[assignment]

    install_acme(monkeypatch, Accelerator("acme"), **VendorFunctions().functions())
    [told] = Plugin().to_the_author
    assert told.startswith(
        "device_properties() of the plugin is absent: what it overrides rests on get_device_prop"
    )
    assert Marked().device_properties(0).unified_memory
    assert not hasattr(Marked(), "to_the_author")


def test_the_vendors_function_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    shared = install_acme(
        monkeypatch,
        Accelerator("acme", fails={"synchronize", "memory_stats"}),
        device_count=lambda: 1,
        synchronize=lambda device=None: seen.append(device),
        memory_stats=lambda device=None: {"allocated_bytes.all.current": 11},
        set_device=lambda device: None,
    )
    backend = GenericBackend("acme")
    shared.calls.clear()
    backend.synchronize(0)
    assert seen == [0]
    assert backend.memory_stats(0).allocated == 11
    assert backend.memory_stats(0).state is AllocatorState.OK
    assert shared.calls == []


def test_a_function_that_takes_no_index_is_not_used_where_there_are_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = install_acme(
        monkeypatch,
        Accelerator("acme"),
        synchronize=lambda: pytest.fail("wrong device"),
        set_device=lambda device: None,
    )
    GenericBackend("acme").synchronize(1)
    assert "synchronize" in shared.calls


def test_old_torch_has_no_memory_functions_to_fall_back_on(monkeypatch: pytest.MonkeyPatch) -> None:
    install_acme(monkeypatch, Accelerator("acme"), version="2.7.1")
    assert not implemented_hooks(GenericBackend("acme")) & {"memory_stats", "empty_cache", "memory_info"}


def test_a_device_that_nobody_can_wait_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install_acme(monkeypatch, Accelerator("acme", fails={"synchronize"}))
    generic.register("acme")
    with pytest.raises(InvalidHooks, match="synchronize"):
        devicekit.select("acme")


def test_a_device_unknown_to_torch_accelerator_relies_on_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    install_acme(
        monkeypatch,
        Accelerator(None),
        is_available=lambda: True,
        device_count=lambda: 1,
        synchronize=lambda device: None,
    )
    hooks = implemented_hooks(GenericBackend("acme"))
    assert {"is_available", "device_count", "synchronize", "classify_error"} <= hooks
    assert "memory_stats" not in hooks


def test_a_device_that_torch_does_not_have_is_named() -> None:
    with pytest.raises(ImportError, match=r"no torch\.nosuch"):
        generic.register("nosuch")


@pytest.mark.parametrize("vendor", ["npu", "musa", "xpu"])
def test_a_full_module_is_served_by_the_generic_backend_too(
    vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = build(FLAVOURS[vendor](None))
    monkeypatch.setattr(torch, vendor, double.module, raising=False)
    backend = GenericBackend(vendor)
    double.driver.allocate(0, 1000)
    assert backend.memory_stats(0).requested == 1000
    with backend.create_graph(1).capture():
        assert backend.is_capturing(1)
    left_out = set(HOOKS) - implemented_hooks(backend)
    assert {"pin_memory", "copies_overlap", "export_ipc", "process_memory"} <= left_out


def test_what_the_reference_device_says_of_full_memory_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    install_acme(monkeypatch, Accelerator("acme"))
    backend = GenericBackend("acme", Findings())
    said = "Failed to allocate 1152921504606846976 bytes on acme device "
    assert backend.classify_error(RuntimeError(said)) is ErrorKind.OUT_OF_MEMORY
    for other in (said.replace("acme", "pmeca"), said.replace("bytes", "handles")):
        assert backend.classify_error(RuntimeError(other)) is None


def test_out_of_memory_is_known_by_the_devices_name() -> None:
    backend = GenericBackend("mps")
    error = RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GiB, max allowed: 9.07 GiB).")
    assert backend.classify_error(error).value == "out_of_memory"
    error = RuntimeError("Cannot execute emptyCache() without MPS backend.")
    assert backend.classify_error(error).value == "not_initialised"
    assert backend.classify_error(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")) is None
    lost = backend.classify_error(RuntimeError("vkQueueSubmit failed: VK_ERROR_DEVICE_LOST"))
    assert lost is ErrorKind.DEVICE_LOST
    assert backend.classify_error(RuntimeError("MPS error: out of memory")) is ErrorKind.OUT_OF_MEMORY
    assert backend.classify_error(RuntimeError("the device list was lost in the post")) is None


_ON_A_REAL_DEVICE_TYPE = """
import torch, devicekit
from devicekit.device import generic
from devicekit.testing import enable

enable()
assert {"caching_allocator", "streams", "events"} <= generic.register("sim").manifest.capabilities
device = devicekit.get_device("sim:1")
assert device.supports("pin_memory") and not device.supports("export_ipc")
tensor = torch.ones(1000, 1000, device="sim:1")
stats = device.memory_stats()
assert stats.requested == 4_000_000 <= stats.allocated <= stats.reserved == stats.peak_reserved, stats
assert devicekit.get_device("sim:0").memory_stats().allocated == 0
del tensor
assert device.empty_cache().released == stats.reserved
stream, end = device.create_stream(), device.create_event(timing=True)
with device.use_stream(stream):
    tensor = torch.ones(10, device="sim:1")
    end.record(stream)
device.synchronize()
assert end.query() and stream.query()
draws = []
for _ in range(2):
    device.manual_seed(3)
    draws.append(torch.rand(3, device="sim:1").cpu())
assert torch.equal(*draws)
from devicekit.torchlike import effects
backend = generic.GenericBackend("sim")
assert not backend.findings.inert, backend.findings
backend.manual_seed = lambda index, seed: None
backend.set_rng_state = lambda index, state: None
shown = {name for name in ("streams", "events", "graphs", "rng_state") if effects.shown_by_effect(backend, name)}
assert {"manual_seed", "set_rng_state"} <= effects.inert_hooks(backend, shown) <= {
    "manual_seed", "set_rng_state", "get_rng_state", "memory_pool"
}
try:
    torch.empty(2**45, device="sim:1")
except RuntimeError as error:
    assert device.classify_error(error).value == "out_of_memory"
else:
    raise AssertionError("nothing can be that large")
"""


@needs_simulator
def test_a_real_device_type_without_a_plugin_is_served_with_real_tensors(warm: Warm) -> None:
    """In a process of its own: torch has room for one such device type, and never gives it back."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [*warm.python, "-c", _ON_A_REAL_DEVICE_TYPE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_functions_and_classes_of_another_shape_are_left_out() -> None:
    """torch.cpu: its current device is a word, its streams take a priority and its events nothing."""
    backend = GenericBackend("cpu")
    assert backend.current_index() == 0
    assert {"create_stream", "create_event"}.isdisjoint(implemented_hooks(backend))


def test_a_fork_is_told_from_a_context_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    install_acme(monkeypatch, Accelerator("acme"))
    backend = GenericBackend("acme", Findings())
    said = "Cannot use Acme in a forked subprocess after the parent process initialised it. Use 'spawn'"
    assert backend.classify_error(RuntimeError(said)) is ErrorKind.NOT_INITIALISED
    assert backend.classify_error(RuntimeError(said.replace("Acme", "a file"))) is None
