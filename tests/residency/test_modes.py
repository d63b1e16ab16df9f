"""Each mode brings all of a module and takes all of it away, changes no bit, and leaves nothing half done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from devicekit.contract.errors import ConfigurationError, HookError
from devicekit.contract.manifest import Manifest
from devicekit.device import Device, get_device
from devicekit.registry import register_backend, unregister_backend
from devicekit.residency import (
    ComponentOffload,
    LayerwiseOffload,
    NoLayers,
    Placement,
    SnapshotOffload,
    Transfer,
)
from devicekit.residency.components import Mode
from devicekit.testing import DeviceLost, Fault, LoseDevice, OutOfMemory, Raise, Simulator
from devicekit.testing.sim_backend import SimBackend

WIDTH = 64


class Model(nn.Module):
    """Layers, something before and after them, buffers, a frozen parameter, and tied weights."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inward = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.outward = nn.Linear(WIDTH, WIDTH, bias=False)
        self.outward.weight = self.inward.weight
        self.gain = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.gain.origin = "by hand"  # type: ignore[attr-defined]  # as loaders mark parameters
        self.register_buffer("shift", torch.linspace(0, 1, WIDTH))
        self.register_buffer("hidden", torch.ones(3, dtype=torch.int64), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inward(x)
        for layer in self.layers:
            x = torch.tanh(layer(x)) * self.gain + self.shift
        return self.outward(x)


MODES: list[Mode] = [
    ComponentOffload(),
    SnapshotOffload(),
    LayerwiseOffload(),
    LayerwiseOffload(prefetch=0),
    LayerwiseOffload(prefetch=9),
    LayerwiseOffload(resident_layers=2, placement=Placement.STRIDED),
    LayerwiseOffload(resident_layers=9, permanent=True),
]
modes = pytest.mark.parametrize("mode", MODES, ids=lambda mode: repr(mode).partition(",")[0])
WHOLE = pytest.mark.parametrize("mode", MODES[:2], ids=["component", "snapshot"])


@pytest.fixture
def model() -> Model:
    return Model().eval()


def inputs(device: torch.device) -> torch.Tensor:
    return torch.linspace(-1, 1, 3 * WIDTH).reshape(3, WIDTH).to(device)


def forward(model: nn.Module, device: torch.device) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(inputs(device))
        return result.cpu()


def devices(model: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}


@modes
@pytest.mark.parametrize("sim_machine", [{}, {"blocking_launches": True}], indirect=True)
def test_results_are_the_hosts_bit_for_bit_use_after_use(
    model: Model, sim_device: Device, mode: Mode
) -> None:
    expected = forward(model, torch.device("cpu"))
    strategy = mode.attach(model, Transfer(sim_device))
    for prefetch in (False, True, False):
        if prefetch:
            strategy.prefetch(None)
            assert strategy.prefetched
        strategy.ready(None)
        for _ in range(2):
            assert torch.equal(forward(model, sim_device.torch_device), expected)
        strategy.park()
    strategy.detach()
    assert devices(model) == {"cpu"}
    assert torch.equal(forward(model, torch.device("cpu")), expected)
    assert sim_device.memory_stats().allocated == 0


@WHOLE
def test_everything_comes_and_everything_goes(model: Model, sim_device: Device, mode: Mode) -> None:
    strategy = mode.attach(model, Transfer(sim_device))
    assert devices(model) == {"cpu"}
    strategy.ready(None)
    assert devices(model) == {"sim"}
    assert strategy.bytes_on_device == strategy.bytes
    assert model.outward.weight is model.inward.weight
    assert not model.gain.requires_grad
    assert model.gain.origin == "by hand"
    strategy.park()
    assert devices(model) == {"cpu"}
    assert model.outward.weight is model.inward.weight
    assert model.gain.origin == "by hand"
    assert strategy.bytes_on_device == 0


def test_tied_weights_are_moved_once(model: Model, sim_device: Device) -> None:
    transfer = Transfer(sim_device)
    strategy = ComponentOffload().attach(model, transfer)
    strategy.ready(None)
    assert transfer.bytes_in == strategy.bytes
    assert strategy.bytes == sum(p.nbytes for p in (*model.parameters(), *model.buffers()))


def test_a_model_that_starts_on_the_device_is_parked(model: Model, sim_device: Device) -> None:
    expected = forward(model, torch.device("cpu"))
    for mode in MODES[:3]:
        model.to(sim_device.torch_device)
        strategy = mode.attach(model, Transfer(sim_device))
        assert devices(model) == {"cpu"}
        assert sim_device.memory_stats().allocated == 0
        strategy.detach()
        assert torch.equal(forward(model, torch.device("cpu")), expected)


def test_component_offload_brings_changes_home_and_a_snapshot_does_not(
    model: Model, sim_device: Device
) -> None:
    for mode, kept in ((ComponentOffload(), 5.0), (SnapshotOffload(), 2.0)):
        model.gain.data = torch.tensor(2.0)
        transfer = Transfer(sim_device)
        strategy = mode.attach(model, transfer)
        strategy.ready(None)
        with torch.no_grad():
            model.gain.fill_(5.0)
        strategy.park()
        assert float(model.gain) == kept
        assert (transfer.bytes_out > 0) is (kept == 5.0)


@modes
def test_a_use_can_have_another_precision(model: Model, sim_device: Device, mode: Mode) -> None:
    strategy = mode.attach(model, Transfer(sim_device))
    strategy.ready(torch.bfloat16)
    assert model.inward.weight.dtype is torch.bfloat16
    assert model.hidden.dtype is torch.int64
    with torch.no_grad():
        assert model(inputs(sim_device.torch_device).bfloat16()).dtype is torch.bfloat16
    strategy.park()


@pytest.mark.parametrize("mode", MODES[:-1], ids=lambda mode: repr(mode).partition(",")[0])
@pytest.mark.parametrize("operation", ["allocate", "copy"])
def test_wherever_it_fails_on_the_way_in_it_is_still_on_the_host(
    sim_machine: Simulator, sim_device: Device, mode: Mode, operation: str
) -> None:
    model = Model().eval()
    expected = forward(model, torch.device("cpu"))
    strategy = mode.attach(model, Transfer(sim_device))
    failures = 0
    for nth in range(1, 40):
        effect = OutOfMemory() if operation == "allocate" else Raise(lambda: RuntimeError("bus error"))
        failed = False
        with sim_machine.inject(Fault(operation, effect, nth=nth)):
            try:
                strategy.ready(None)
            except RuntimeError:
                failed = True
        if failed:
            failures += 1
            assert devices(model) == {"cpu"}
            assert sim_device.memory_stats().allocated == 0
            assert torch.equal(forward(model, torch.device("cpu")), expected)
        strategy.park()
    strategy.ready(None)
    assert torch.equal(forward(model, sim_device.torch_device), expected)
    assert failures >= 5


def test_wherever_it_fails_on_the_way_out_it_is_still_on_the_device(
    sim_machine: Simulator, sim_device: Device, model: Model
) -> None:
    expected = forward(model, torch.device("cpu"))
    strategy = ComponentOffload().attach(model, Transfer(sim_device))
    strategy.ready(None)
    for nth in range(1, 5):
        fault = Fault("copy", Raise(lambda: RuntimeError("bus error")), nth=nth)
        with sim_machine.inject(fault), pytest.raises(RuntimeError, match="bus error"):
            strategy.park()
        assert devices(model) == {"sim"}
        assert torch.equal(forward(model, sim_device.torch_device), expected)
    strategy.park()
    assert torch.equal(forward(model, torch.device("cpu")), expected)


@pytest.mark.parametrize("mode", MODES[1:], ids=lambda mode: repr(mode).partition(",")[0])
def test_frozen_weights_survive_a_lost_device(
    sim_machine: Simulator, sim_device: Device, model: Model, mode: Mode
) -> None:
    expected = forward(model, torch.device("cpu"))
    strategy = mode.attach(model, Transfer(sim_device))
    strategy.ready(None)
    with sim_machine.inject(Fault("kernel", LoseDevice(), nth=3)):
        with pytest.raises(DeviceLost):
            forward(model, sim_device.torch_device)
        with contextlib.suppress(DeviceLost, HookError):
            strategy.detach()
    assert devices(model) == {"cpu"}
    assert torch.equal(forward(model, torch.device("cpu")), expected)


def peak(device: Device, run: Callable[[], object]) -> int:
    device.reset_peak_memory_stats()
    run()
    found = device.memory_stats().peak_allocated
    assert found is not None
    return found


def test_layers_pass_through_the_device_one_or_a_few_at_a_time(sim_device: Device) -> None:
    peaks: list[int] = []
    for mode in (
        LayerwiseOffload(prefetch=0),
        LayerwiseOffload(prefetch=1),
        LayerwiseOffload(resident_layers=9),
    ):
        model = Model(depth=8).eval()
        strategy = mode.attach(model, Transfer(sim_device))
        strategy.ready(None)
        peaks.append(peak(sim_device, lambda model=model: forward(model, sim_device.torch_device)))
        strategy.detach()
    layer = (WIDTH * WIDTH + WIDTH) * 4
    assert peaks[1] - peaks[0] == pytest.approx(layer, rel=0.1)
    assert peaks[2] - peaks[0] == pytest.approx(7 * layer, rel=0.1)


@pytest.mark.parametrize("sim_machine", [{"kernel_seconds": 1e-3, "copy_latency": 1e-3}], indirect=True)
def test_the_next_layer_comes_while_this_one_computes(sim_machine: Simulator, sim_device: Device) -> None:
    seconds: list[float] = []
    for mode in (LayerwiseOffload(prefetch=0), LayerwiseOffload(prefetch=1)):
        model = Model(depth=8).eval()
        strategy = mode.attach(model, Transfer(sim_device))
        strategy.ready(None)
        sim_device.synchronize()
        before = sim_machine.clock.now()
        forward(model, sim_device.torch_device)
        seconds.append(sim_machine.clock.now() - before)
        strategy.detach()
    assert seconds[1] < 0.75 * seconds[0]


def test_permanent_layers_stay_between_uses(model: Model, sim_device: Device) -> None:
    transfer = Transfer(sim_device)
    mode = LayerwiseOffload(resident_layers=2, permanent=True)
    strategy = mode.attach(model, transfer)
    strategy.ready(None)
    strategy.park()
    layer = (WIDTH * WIDTH + WIDTH) * 4
    assert strategy.bytes_on_device == 2 * layer
    assert {model.layers[0].weight.device.type, model.layers[2].weight.device.type} == {"sim", "cpu"}
    strategy.detach()
    assert strategy.bytes_on_device == 0


def test_a_layer_that_cannot_come_early_comes_in_time(
    sim_machine: Simulator, sim_device: Device, model: Model
) -> None:
    expected = forward(model, torch.device("cpu"))
    strategy = LayerwiseOffload().attach(model, Transfer(sim_device))
    strategy.ready(None)
    # The second allocation of the pass is the prefetch of the second layer: the first is its input.
    x = inputs(sim_device.torch_device)
    with sim_machine.inject(Fault("allocate", OutOfMemory(), nth=2)) as script, torch.no_grad():
        assert torch.equal(model(x).cpu(), expected)
    assert len(script.hits) == 1
    assert strategy.prefetches_failed == 1  # type: ignore[attr-defined]  # of this mode only
    strategy.detach()


def test_tensors_that_layers_share_come_with_the_rest(sim_device: Device) -> None:
    model = Model().eval()
    model.layers[2].weight = model.layers[0].weight
    model.layers[1].bias = model.inward.bias
    expected = forward(model, torch.device("cpu"))
    strategy = LayerwiseOffload().attach(model, Transfer(sim_device))
    strategy.ready(None)
    assert model.layers[0].weight.device.type == "sim"
    assert model.layers[2].weight is model.layers[0].weight
    assert model.layers[1].bias is model.inward.bias
    assert torch.equal(forward(model, sim_device.torch_device), expected)
    strategy.detach()
    assert model.layers[2].weight is model.layers[0].weight


def test_layers_can_be_named_and_must_be_there(sim_device: Device) -> None:
    chain = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    with pytest.raises(NoLayers, match=r"Sequential has no nn\.ModuleList"):
        LayerwiseOffload().attach(chain, Transfer(sim_device))
    strategy = LayerwiseOffload(layers=list).attach(chain, Transfer(sim_device))
    strategy.ready(None)
    with torch.no_grad():
        chain(torch.ones(1, 4, device=sim_device.torch_device))
    strategy.detach()
    with pytest.raises(ConfigurationError, match="prefetch"):
        LayerwiseOffload(prefetch=-1)


def test_host_copies_are_page_locked_unless_told_not_to(sim_device: Device, model: Model) -> None:
    strategy = SnapshotOffload().attach(model, Transfer(sim_device))
    assert all(tensor.is_pinned() for tensor in (*model.parameters(), *model.buffers()))
    strategy.detach()
    plain = Model().eval()
    strategy = SnapshotOffload().attach(plain, Transfer(sim_device, pin=False))
    assert not any(tensor.is_pinned() for tensor in plain.parameters())
    strategy.ready(None)
    assert devices(plain) == {"sim"}


@pytest.fixture
def streamless(sim_machine: Simulator) -> Iterator[Device]:
    """The simulated accelerator as seen by a backend that has no streams, events or pinned memory."""
    absent = {"current_stream", "create_stream", "use_stream", "create_event", "create_graph", "pin_memory"}
    hooks = {name: hook for name, hook in vars(SimBackend).items() if name[0] != "_" and name not in absent}
    table = {"name": "streamless", "device_type": "sim", "contract": ">=1.0,<2", "noop": ["collect_ipc"]}
    register_backend(type("Streamless", (), hooks), Manifest.parse({"backend": table}))
    yield get_device("streamless")
    unregister_backend("streamless")


@modes
def test_without_streams_it_works_and_says_so(streamless: Device, model: Model, mode: Mode) -> None:
    expected = forward(model, torch.device("cpu"))
    transfer = Transfer(streamless)
    assert not transfer.asynchronous
    assert not transfer.pins
    strategy = mode.attach(model, transfer)
    strategy.ready(None)
    assert torch.equal(forward(model, streamless.torch_device), expected)
    strategy.detach()
    assert devices(model) == {"cpu"}


SLOW = pytest.mark.parametrize("sim_machine", [{"copy_latency": 1e-3}], indirect=True)


@SLOW
@pytest.mark.parametrize("mode", [SnapshotOffload(), LayerwiseOffload()], ids=["snapshot", "layerwise"])
def test_memory_of_a_prefetch_that_is_given_up_is_not_used_before_its_copies_are_over(
    sim_device: Device, model: Model, mode: Mode
) -> None:
    strategy = mode.attach(model, Transfer(sim_device))
    sim_device.synchronize()
    strategy.prefetch(None)
    assert sim_device.current_stream().query()
    strategy.park()
    assert not sim_device.current_stream().query()


@SLOW
def test_memory_of_a_copy_that_failed_is_not_freed_before_the_others_are_over(
    sim_machine: Simulator, sim_device: Device, model: Model
) -> None:
    strategy = SnapshotOffload().attach(model, Transfer(sim_device))
    sim_device.synchronize()
    before = sim_machine.clock.now()
    fault = Fault("copy", Raise(lambda: RuntimeError("bus error")), nth=4)
    with sim_machine.inject(fault), pytest.raises(RuntimeError, match="bus error"):
        strategy.ready(None)
    assert sim_machine.clock.now() - before >= 3e-3
