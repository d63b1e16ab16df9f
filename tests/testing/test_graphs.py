"""A captured graph runs nothing when it is captured, and everything, on the same memory, when it is replayed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from devicekit.testing import CaptureError, Simulator
from devicekit.testing.graphs import SimGraph

pytestmark = pytest.mark.usefixtures("machine")


@pytest.fixture
def graph(machine: Simulator) -> SimGraph:
    return SimGraph(machine.device(0))


def test_a_replay_computes_anew_from_what_its_inputs_hold_then(graph: SimGraph) -> None:
    static = torch.zeros(4, device="sim")
    weight = torch.full((4,), 2.0, device="sim")
    with graph.capture():
        hidden = static * weight
        hidden += 1
        result = hidden.view(2, 2).sum(-1)
    for value in (1.0, 5.0):
        static.fill_(value)
        graph.replay()
        assert result.tolist() == [2 * (2 * value + 1)] * 2


def test_capturing_runs_nothing_and_takes_no_time(machine: Simulator, graph: SimGraph) -> None:
    counter = torch.zeros(1, device="sim")
    torch.sim.synchronize()
    before = machine.device(0).tail
    with graph.capture():
        assert torch.sim.is_current_stream_capturing()
        counter += 1
    assert not torch.sim.is_current_stream_capturing()
    assert machine.device(0).tail == before
    assert counter.tolist() == [0.0]
    graph.replay()
    graph.replay()
    assert counter.tolist() == [2.0]


def test_a_replay_is_work_in_the_stream(machine: Simulator, graph: SimGraph) -> None:
    x = torch.zeros(1, device="sim")
    with graph.capture():
        x += 1
    torch.sim.synchronize()
    graph.replay()
    assert not torch.sim.current_stream().query()


def test_indexing_by_numbers_is_captured_and_by_a_mask_is_not(graph: SimGraph) -> None:
    source, places = torch.arange(4.0, device="sim"), torch.zeros(2, dtype=torch.int64, device="sim")
    with graph.capture():
        taken = source[places]
    places += 3
    graph.replay()
    assert taken.tolist() == [3.0, 3.0]
    mask = torch.ones(4, dtype=torch.bool, device="sim")
    with pytest.raises(CaptureError), graph.capture():
        source[mask]


def test_copies_to_pinned_memory_are_captured(graph: SimGraph) -> None:
    source, result = torch.ones(2).pin_memory(), torch.zeros(2).pin_memory()
    static = torch.zeros(2, device="sim")
    with graph.capture():
        static.copy_(source, non_blocking=True)
        result.copy_(static * 3, non_blocking=True)
    source.fill_(4.0)
    graph.replay()
    torch.sim.synchronize()
    assert result.tolist() == [12.0, 12.0]


@pytest.mark.parametrize("there", [False, True], ids=["freed", "written in place"])
def test_a_replay_is_refused_once_what_it_reads_was_freed(graph: SimGraph, there: bool) -> None:
    weight, result = torch.full((4,), 2.0, device="sim"), torch.zeros(4, device="sim")
    with graph.capture():
        result.copy_(weight[1:3].sum() * weight)
    if there:
        weight.fill_(3.0)
        graph.replay()
        assert result.tolist() == [18.0] * 4
        return
    weight.data = torch.full((4,), 3.0, device="sim")
    with pytest.raises(CaptureError, match="freed after it was captured"):
        graph.replay()
    graph.reset()
    with graph.capture():
        result.copy_(weight)
    graph.replay()
    assert result.tolist() == [3.0] * 4


@pytest.mark.parametrize(
    "use",
    [
        lambda x: torch.sim.synchronize(),
        lambda x: torch.sim.empty_cache(),
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: torch.ones(2).to("sim"),
        lambda x: x.to("sim:1"),
    ],
)
def test_what_cannot_be_captured_is_refused_and_the_capture_is_dropped(
    graph: SimGraph, use: Callable[[torch.Tensor], object]
) -> None:
    x = torch.ones(2, device="sim")
    with pytest.raises(CaptureError), graph.capture():
        use(x)
    assert not torch.sim.is_current_stream_capturing()
    with pytest.raises(CaptureError, match="no captured work"):
        graph.replay()
    assert (x + x).tolist() == [2.0, 2.0]


def test_captures_do_not_nest(machine: Simulator, graph: SimGraph) -> None:
    with graph.capture(), pytest.raises(CaptureError, match="already"), SimGraph(machine.device(0)).capture():
        pass


def test_what_a_graph_allocated_stays_its_own_until_it_is_reset(graph: SimGraph) -> None:
    x = torch.ones(1024, device="sim")
    torch.sim.empty_cache()
    before = torch.sim.memory_reserved()
    with graph.capture():
        y = x * 2
    address = y.data_ptr()
    del y
    assert torch.empty(1024, device="sim").data_ptr() != address
    torch.sim.empty_cache()
    assert torch.sim.memory_reserved() > before
    graph.reset()
    torch.sim.empty_cache()
    assert torch.sim.memory_reserved() == before
