"""Whatever is used in whatever order, and whatever fails: results are the host's, and nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from devicekit.device import Device
from devicekit.residency import (
    ComponentOffload,
    ComponentUse,
    LayerwiseOffload,
    Residency,
    Resident,
    SnapshotOffload,
    Stage,
)
from devicekit.residency.components import Mode
from devicekit.testing import Fault, OutOfMemory, Raise, Simulator

WIDTH = 32
NAMES = ("a", "b", "c")
MODES: list[Mode] = [
    Resident(),
    ComponentOffload(),
    SnapshotOffload(),
    LayerwiseOffload(),
    LayerwiseOffload(prefetch=2, resident_layers=1),
]


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


@pytest.fixture(scope="module")
def towers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: Tower().eval() for name in NAMES}


uses = st.builds(
    ComponentUse,
    component=st.sampled_from(NAMES),
    phase=st.sampled_from(["", "again"]),
    start_at_stage_entry=st.just(True),
    allow_prefetch=st.booleans(),
    keep_after_request=st.booleans(),
    release_after_use=st.booleans(),
    memory_intensive=st.sampled_from([None, True, False]),
)
faults = st.builds(
    Fault,
    operation=st.sampled_from(["allocate", "copy", "event.record", "stream.create", "kernel"]),
    effect=st.sampled_from([OutOfMemory(), Raise(lambda: RuntimeError("bus error"))]),
    nth=st.integers(1, 60),
    times=st.integers(1, 3),
)


def run(
    residency: Residency, stages: list[Stage], towers: dict[str, nn.Module], device: torch.device
) -> torch.Tensor:
    with residency.request(stages), torch.no_grad():
        x = torch.linspace(-1, 1, WIDTH).reshape(1, WIDTH).to(device)
        for stage in stages:
            with residency.stage(stage.name):
                x = towers[stage.uses[0].component](x)
        return x.cpu()


@settings(
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    plan=st.lists(uses, min_size=1, max_size=5),
    modes=st.lists(st.sampled_from(MODES), min_size=3, max_size=3),
    fault=st.none() | faults,
)
def test_results_do_not_depend_on_where_components_live(
    sim_machine: Simulator,
    sim_device: Device,
    towers: dict[str, nn.Module],
    plan: list[ComponentUse],
    modes: list[Mode],
    fault: Fault | None,
) -> None:
    stages = [Stage(str(number), (use,)) for number, use in enumerate(plan)]
    expected = torch.linspace(-1, 1, WIDTH).reshape(1, WIDTH)
    with torch.no_grad():
        for use in plan:
            expected = towers[use.component](expected)
    used = {use.component for use in plan}
    chosen = {name: mode for name, mode in zip(NAMES, modes, strict=True) if name in used}
    residency = Residency(towers, sim_device, chosen, prefetch_margin=0)
    try:
        for attempt in (fault, None):
            with sim_machine.inject(*filter(None, [attempt])):
                try:
                    image = run(residency, stages, towers, sim_device.torch_device)
                except (RuntimeError, torch.OutOfMemoryError):
                    assert attempt is not None
                else:
                    assert torch.equal(image, expected)
    finally:
        for name in used:
            residency.forget(name)
        for tower in towers.values():
            tower.to("cpu")
    assert sim_device.memory_stats().allocated == 0
