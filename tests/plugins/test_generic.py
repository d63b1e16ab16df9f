"""Devices without a plugin: the vendor's module first, then torch.accelerator, and nothing that neither serves."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import devicekit
from devicekit.contract import HOOKS, AllocatorState, DeviceProperties, ErrorKind, Manifest, hookimpl
from devicekit.contract.errors import BackendUnavailable, DuplicateBackend, InvalidHooks
from devicekit.device import generic
from devicekit.registry.validation import implemented_hooks
from devicekit.torchlike import Findings, GenericBackend, needs
from devicekit.torchlike.facade import lenient_functions
from devicekit.torchlike.needs import needed
from devicekit_cpu import Backend as HostBackend
from tests.doubles.partial import Accelerator, Mps
from tests.doubles.surface import Surface, strict_module
from tests.doubles.vendors import FLAVOURS, build
from tests.releases import needs_simulator


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


def _acme(
    patch: pytest.MonkeyPatch, shared: Accelerator, version: str = "2.13.0", **functions: object
) -> Accelerator:
    module = ModuleType("torch.acme")
    module.__dict__.update(functions)
    patch.setattr(torch, "acme", module, raising=False)
    patch.setattr(torch, "accelerator", strict_module(Surface("accelerator", version), shared, {}))
    return shared


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
    shared = _acme(monkeypatch, Accelerator("acme"))
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
    shared = _acme(monkeypatch, Accelerator("acme"))
    stats = GenericBackend("acme").memory_stats(0)
    assert (stats.allocated, stats.reserved, stats.num_ooms) == (0, 0, None)
    assert stats.source == "torch.accelerator"
    shared.counters["num_ooms"] = 2
    assert GenericBackend("acme").memory_stats(0).num_ooms == 2


class Queues:
    """torch's own streams and events over a backend that has them; `inert`, over one that has none."""

    def __init__(self, inert: bool) -> None:
        self.inert = inert
        self.current: dict[int, object] = {}
        self.index = 0
        self.synchronized = 0

    def install(self, patch: pytest.MonkeyPatch, shared: Accelerator) -> None:
        outer = self

        class Stream:
            made = 0

            def __init__(self, device: torch.device, priority: int = 0) -> None:
                Stream.made += 1
                self.device, self.priority = device, priority
                self.stream_id = 0 if outer.inert else Stream.made

            def __eq__(self, other: object) -> bool:
                return isinstance(other, Stream) and (self.device, self.stream_id) == (
                    other.device,
                    other.stream_id,
                )

            def __hash__(self) -> int:
                return self.stream_id

        class Event:
            def __init__(self, device: object, enable_timing: bool = False) -> None:
                self.timing, self.recorded = enable_timing, False

            def record(self, stream: object = None) -> None:
                self.recorded = True

            def synchronize(self) -> None:
                if outer.inert:
                    raise RuntimeError("Backend doesn't support synchronizing events.")
                outer.synchronized += 1

            def query(self) -> bool:
                return self.recorded

        def current_stream(index: int) -> object:
            return self.current.setdefault(index, Stream(torch.device("cpu", index)))

        def set_stream(stream: Stream) -> None:
            self.index = stream.device.index
            self.current[self.index] = stream

        def set_device_index(index: int) -> None:
            self.index = index

        patch.setattr(torch, "Stream", Stream)
        patch.setattr(torch, "Event", Event)
        real = torch.device
        # torch has no such type: the streams say where they are by the host's.
        patch.setattr(torch, "device", lambda kind, index=0: real("cpu", index))
        for function in (current_stream, set_stream, set_device_index):
            patch.setattr(torch.accelerator, function.__name__, function, raising=False)
        patch.setattr(torch.accelerator, "current_device_index", lambda: self.index, raising=False)


STREAM_HOOKS = {"create_stream", "use_stream", "current_stream", "set_current_stream", "create_event"}


def test_torchs_own_streams_and_events_serve_where_they_do_something(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = _acme(monkeypatch, Accelerator("acme"))
    queues = Queues(inert=False)
    queues.install(monkeypatch, shared)
    backend = GenericBackend("acme")
    assert implemented_hooks(backend) >= STREAM_HOOKS
    assert "streams" in backend.findings.claims
    before, side = backend.current_stream(1), backend.create_stream(1, -1)
    queues.index = 0
    with backend.use_stream(side):
        assert backend.current_stream(1) == side != before
    assert (backend.current_stream(1), queues.index) == (before, 0)
    backend.set_current_stream(side)
    assert (backend.current_stream(1), queues.index) == (side, 0)


def test_torchs_own_streams_and_events_that_do_nothing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = _acme(monkeypatch, Accelerator("acme"))
    Queues(inert=True).install(monkeypatch, shared)
    backend = GenericBackend("acme")
    assert not STREAM_HOOKS & implemented_hooks(backend)
    assert not {"streams", "events"} & backend.findings.claims


def test_a_device_that_is_not_in_use_is_tried_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = _acme(monkeypatch, Accelerator("acme"), is_initialized=lambda: False)
    backend = GenericBackend("acme")
    assert shared.calls == []
    assert {"synchronize", "memory_stats"} <= backend.findings.served


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

    functions = {**Vendor().functions(), "Event": Event}
    _acme(monkeypatch, Accelerator("acme"), **functions)
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

    _acme(monkeypatch, Accelerator("acme"), **Vendor().functions())
    [told] = Plugin().to_the_author
    assert told.startswith(
        "device_properties() of the plugin is absent: what it overrides rests on get_device_prop"
    )
    assert Marked().device_properties(0).unified_memory
    assert not hasattr(Marked(), "to_the_author")


def test_hooks_that_were_seen_to_do_nothing_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    functions = {
        **Vendor().functions(),
        "manual_seed": lambda seed: None,
        "get_rng_state": lambda device: None,
    }
    _acme(monkeypatch, Accelerator("acme"), **functions)
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
    shared = _acme(monkeypatch, Accelerator("acme"))
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
    _acme(monkeypatch, Accelerator("acme"), is_initialized=lambda: False, synchronize=lambda device: None)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: os._exit(3))
    with pytest.warns(
        RuntimeWarning, match=r"torch\.acme was tried in another process, and nothing is known"
    ):
        backend = GenericBackend("acme")
    assert not backend.findings.served
    assert not backend.findings.claims
    assert "synchronize" in implemented_hooks(backend)


def test_an_allocator_that_is_none_is_found_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = _acme(monkeypatch, Accelerator("acme", fails={"memory_stats", "empty_cache"}))
    backend = GenericBackend("acme")
    hooks = implemented_hooks(backend)
    assert not hooks & {"memory_stats", "empty_cache", "reset_peak_memory_stats", "memory_info"}
    assert "synchronize" in hooks
    assert shared.calls.count("memory_stats") == 1


def test_the_vendors_function_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    shared = _acme(
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
    shared = _acme(
        monkeypatch,
        Accelerator("acme"),
        synchronize=lambda: pytest.fail("wrong device"),
        set_device=lambda device: None,
    )
    GenericBackend("acme").synchronize(1)
    assert "synchronize" in shared.calls


def test_old_torch_has_no_memory_functions_to_fall_back_on(monkeypatch: pytest.MonkeyPatch) -> None:
    _acme(monkeypatch, Accelerator("acme"), version="2.7.1")
    assert not implemented_hooks(GenericBackend("acme")) & {"memory_stats", "empty_cache", "memory_info"}


def test_a_device_that_nobody_can_wait_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _acme(monkeypatch, Accelerator("acme", fails={"synchronize"}))
    generic.register("acme")
    with pytest.raises(InvalidHooks, match="synchronize"):
        devicekit.select("acme")


def test_a_device_unknown_to_torch_accelerator_relies_on_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    _acme(
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
def test_a_real_device_type_without_a_plugin_is_served_with_real_tensors() -> None:
    """In a process of its own: torch has room for one such device type, and never gives it back."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", _ON_A_REAL_DEVICE_TYPE],
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


class Vendor:
    """A module in the manner of many: counting initialises, and a device that is not there is the current one."""

    def __init__(self) -> None:
        self.initialised = False
        self.peaks_reset: list[int] = []

    def functions(self) -> dict[str, object]:
        return {
            "is_initialized": lambda: self.initialised,
            "is_available": lambda: self.count() > 0,
            "device_count": self.count,
            "_is_in_bad_fork": lambda: False,
            "current_device": lambda: 0,
            "set_device": lambda device: None,
            "synchronize": lambda device=None: None,
            "memory_stats": self.memory_stats,
            "reset_peak_memory_stats": self.peaks_reset.append,
        }

    def count(self) -> int:
        self.initialised = True
        return 2

    def memory_stats(self, device: int) -> dict[str, int]:
        if device > 1:
            raise IndexError(f"no device {device}")
        return {"allocated_bytes.all.current": 11}


KEPT = Findings(lenient=frozenset(["set_device", "memory_stats", "of_the_future"]), counting_initialises=True)


def test_counting_that_initialises_is_done_elsewhere_until_the_device_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vendor = Vendor()
    _acme(monkeypatch, Accelerator("acme"), **vendor.functions())
    backend = GenericBackend("acme", KEPT)
    assert backend.device_count() == 2
    assert backend.is_available()
    assert not vendor.initialised
    assert GenericBackend("acme", Findings()).device_count() == 2
    assert vendor.initialised
    assert backend.device_count() == 2


def test_a_forked_child_is_told_what_its_parent_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    vendor = Vendor()
    _acme(monkeypatch, Accelerator("acme"), **vendor.functions())
    backend = GenericBackend("acme", KEPT)
    assert backend.device_count() == 2
    monkeypatch.setattr(backend.module, "_is_in_bad_fork", lambda: True)
    monkeypatch.setattr(backend.module, "device_count", lambda: 0)  # as a module says of a forked child
    assert backend.device_count() == 2


def test_counting_elsewhere_that_fails_says_what_was_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> int:
        raise OSError("the driver is from another age")

    functions = {**Vendor().functions(), "device_count": broken, "is_available": lambda: True}
    _acme(monkeypatch, Accelerator("acme"), **functions)
    with pytest.raises(RuntimeError, match="OSError: the driver is from another age"):
        GenericBackend("acme", KEPT).device_count()


@pytest.mark.parametrize("index", [-7, -1, 2])
def test_a_device_that_is_not_there_is_refused_for_a_lenient_module(
    monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    _acme(monkeypatch, Accelerator("acme"), **Vendor().functions())
    backend = GenericBackend("acme", KEPT)
    backend.device_count()
    backend.module.device_count()  # in use from here on
    assert backend.memory_stats(1).allocated == 11
    for call in (backend.set_index, backend.memory_stats):
        with pytest.raises(RuntimeError) as caught:
            call(index)
        assert backend.classify_error(caught.value) is ErrorKind.WRONG_DEVICE


def test_what_a_module_lets_pass_is_found_by_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    vendor = Vendor()
    _acme(monkeypatch, Accelerator("acme"), **vendor.functions())
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

    _acme(monkeypatch, Careless("acme"))
    known = Findings(served=frozenset({"memory_stats", "reset_peak_memory_stats", "mem_get_info"}))
    module = GenericBackend("acme", known).module
    assert known.served <= lenient_functions(module)
    assert not asked
    backend = GenericBackend("acme", replace(known, lenient=lenient_functions(module)))
    with pytest.raises(RuntimeError) as caught:
        backend.memory_stats(5)
    assert backend.classify_error(caught.value) is ErrorKind.WRONG_DEVICE


def test_a_fork_is_told_from_a_context_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    _acme(monkeypatch, Accelerator("acme"))
    backend = GenericBackend("acme", Findings())
    said = "Cannot use Acme in a forked subprocess after the parent process initialised it. Use 'spawn'"
    assert backend.classify_error(RuntimeError(said)) is ErrorKind.NOT_INITIALISED
    assert backend.classify_error(RuntimeError(said.replace("Acme", "a file"))) is None


def test_the_author_of_a_plugin_that_is_tried_each_time_is_told_what_to_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Plugin(GenericBackend):
        pass

    _acme(monkeypatch, Accelerator("acme"))
    older = Plugin("acme")
    [told] = older.to_the_author
    assert 'print(GenericBackend("acme").findings)' in told
    assert not hasattr(Plugin("acme", older.findings), "to_the_author")
    assert not hasattr(GenericBackend("acme"), "to_the_author")  # nobody wrote that one
