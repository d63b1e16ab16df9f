"""Observing never changes what is observed: statistics, peaks, current device, initialisation, random state."""

from __future__ import annotations

import itertools
from contextlib import ExitStack

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import devicekit
from devicekit import Device
from devicekit.observe import Limit, Recorder, StageProfiler, Statistics, Tracer, Track, memory_scope, watch
from devicekit.testing import KIB, SimConfig, simulation
from devicekit.testing.sim_backend import register
from tests.observe.actions import INITIALISING, OBSERVERS, QUERIES


def _state() -> tuple[object, ...]:
    """Everything about the simulated machine that an observer could disturb."""
    devices = [devicekit.get_device(f"sim:{index}") for index in range(2)]
    return (
        torch.sim.is_initialized(),
        torch.sim.current_device(),
        [device.memory_stats() for device in devices],
        [device.host_memory_stats() for device in devices],
        [torch.sim.get_rng_state(index).tolist() for index in range(2)],
        torch.get_rng_state().tolist(),
        torch.sim.is_initialized(),
    )


@pytest.fixture(scope="module", autouse=True)
def _sim() -> object:
    register()
    yield
    devicekit.unregister_backend("sim")


@pytest.mark.parametrize("name", [*OBSERVERS, *QUERIES])
def test_nothing_initialises_a_device_that_was_not(name: str) -> None:
    with simulation():
        before = _state()
        assert before[0] is False
        {**OBSERVERS, **QUERIES}[name](devicekit.get_device("sim:1"))
        assert _state() == before


sizes = st.integers(1, 3000).map(lambda count: count * KIB)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), st.integers(0, 1), sizes),
        st.tuples(st.just("free"), st.integers(0, 50), st.just(0)),
        st.tuples(st.just("current"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("reset peak"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("empty"), st.just(0), st.just(0)),
        st.tuples(st.just("draw"), st.integers(0, 1), st.just(8)),
    ),
    min_size=1,
    max_size=25,
)


class Workload:
    """Allocations, frees and draws on two devices, as Hypothesis thinks them up."""

    def __init__(self) -> None:
        self.held: list[torch.Tensor] = []

    def run(self, verb: str, number: int, size: int) -> None:
        if verb == "allocate":
            self.held.append(torch.empty(size, dtype=torch.uint8, device=f"sim:{number}"))
        elif verb == "free" and self.held:
            del self.held[number % len(self.held)]
        elif verb == "current":
            torch.sim.set_device(number)
        elif verb == "reset peak":
            devicekit.get_device(f"sim:{number}").reset_peak_memory_stats()
        elif verb == "empty":
            devicekit.get_device("sim").empty_cache()
        elif verb == "draw":
            self.held.append(torch.rand(size, device=f"sim:{number}"))


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(steps, st.sampled_from([SimConfig(), SimConfig.uncached(), SimConfig.rounding_to_2mib()]))
def test_observers_and_queries_change_nothing_in_any_state(
    chosen: list[tuple[str, int, int]], config: SimConfig
) -> None:
    actions = {**OBSERVERS, **QUERIES, **INITIALISING}
    names = itertools.cycle(actions)
    with simulation(config):
        workload = Workload()
        torch.empty(1, device="sim")
        for verb, number, size in chosen:
            workload.run(verb, number, size)
            before = _state()
            for _, name in zip(range(6), names, strict=False):
                actions[name](devicekit.get_device(f"sim:{number % 2}"))
                assert _state() == before, name


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_a_workload_ends_the_same_with_and_without_every_observer(chosen: list[tuple[str, int, int]]) -> None:
    ends = []
    for observed in (False, True):
        with simulation(), ExitStack() as stack:
            torch.sim.manual_seed_all(3)
            torch.manual_seed(4)
            workload = Workload()
            if observed:
                for device in map(devicekit.get_device, ("sim:0", "sim:1")):
                    stack.enter_context(Tracer(device))
                    stack.enter_context(Recorder(device))
                    stack.enter_context(watch(device, Statistics(), Track(), Limit(1 << 40)))
                    stack.enter_context(StageProfiler(device).stage("all"))
                    stack.enter_context(memory_scope(device))
            for step in chosen:
                workload.run(*step)
            values = [one.cpu().tolist() for one in workload.held if one.dtype == torch.float32]
            ends.append((values, _state()))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("name", [*OBSERVERS, *QUERIES, *INITIALISING])
def test_the_host_is_left_as_it_was(cpu: Device, name: str) -> None:
    def state() -> tuple[object, ...]:
        return (
            cpu.memory_stats(),
            cpu.current_index(),
            torch.get_rng_state().tolist(),
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            cpu.backend.function("synchronize"),
        )

    if name == "memory_snapshot":
        assert cpu.memory_snapshot() is None
    before = state()
    {**OBSERVERS, **QUERIES, **INITIALISING}[name](cpu)
    assert state() == before
