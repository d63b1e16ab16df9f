"""The suite's own road to a device: waiting is judged with events and without, on plain torch alone."""

from __future__ import annotations

import contextlib

import torch

from devicekit.testing import simulation
from devicekit_conformance.probe import Probe, TorchProbe
from devicekit_conformance.probe_work import Worker


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
