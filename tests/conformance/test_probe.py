"""The suite's own road to a device: waiting is judged with events and without, on plain torch alone."""

from __future__ import annotations

import contextlib

import torch

from devicekit.testing import SimConfig, simulation
from devicekit_conformance.judge import Nursery
from devicekit_conformance.outcomes import Status
from devicekit_conformance.probe import Probe, TorchProbe
from devicekit_conformance.probe_work import Worker
from devicekit_conformance.session import Session
from devicekit_conformance.target import Target


def test_work_is_seen_running_and_finished_without_events_or_streams() -> None:
    with simulation() as machine:
        worker = Worker(torch.device("sim", 0), None, None, lambda stream: contextlib.nullcontext())
        for _ in range(3):
            token = worker.submit()
            assert not token.done()
            machine.synchronize(0)
            assert token.done()


def test_the_hosts_probe_is_a_probe() -> None:
    probe = TorchProbe("cpu", indexed=False)
    assert isinstance(probe, Probe)
    token = probe.submit(0, None)
    assert token is not None
    assert token.done()
    assert probe.tensor(64, 0).dtype is torch.uint8
    assert "allocate" in str(probe.exhaust(0)) or isinstance(probe.exhaust(0), (RuntimeError, MemoryError))


def test_the_probe_asks_nothing_that_initialises() -> None:
    with simulation(SimConfig.lazy()) as machine:
        probe = TorchProbe("sim", indexed=True)
        assert probe.current_index() is None
        assert not machine.initialized
        probe.tensor(16, 1)
        assert probe.current_index() == 0


def test_a_module_that_initialises_when_it_is_asked_is_no_fault(nursery: Nursery) -> None:
    session = Session(
        Target("devicekit_conformance.simulated:lazy"),
        nursery,
        only=["DK-CORE-003", "DK-CORE-004", "DK-CORE-008", "DK-EACH-101", "DK-EACH-201"],
        profiles=("core", "memory"),
    )
    try:
        session.run()
        bad = [one for one in session.results() if one.status in (Status.FAIL, Status.ERROR)]
        assert not bad, "\n".join(f"{one.id}: {one.message}" for one in bad)
    finally:
        session.close()
