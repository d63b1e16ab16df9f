"""A forked child knows what it cannot know, and what it cannot do."""

from __future__ import annotations

from collections.abc import Callable

from tests.releases import needs_simulator

PRELUDE = """
import os, sys, torch, devicekit
from devicekit.testing import ForkedAfterUse
from devicekit.testing.sim_backend import register
register()

def in_child(report):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            print(report(), flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)

def use():
    try:
        return torch.ones(1, device="sim").item()
    except ForkedAfterUse as error:
        return "spawn" in str(error)
"""


@needs_simulator
def test_a_child_forked_after_first_use_reads_nothing_and_can_do_nothing(run: Callable[[str], str]) -> None:
    code = """
torch.ones(4, device="sim")
device = devicekit.get_device("sim")
in_child(lambda: (torch.sim._is_in_bad_fork(), torch.sim.is_initialized(), torch.sim.memory_stats()))
in_child(lambda: (device.memory_stats().state.value, device.memory_stats().allocated, device.is_bad_fork()))
in_child(device.memory_snapshot)
in_child(use)
print(device.is_bad_fork(), use())
"""
    assert run(PRELUDE + code).splitlines() == [
        "(True, False, {})",
        "('bad_fork', None, True)",
        "None",
        "True",
        "False 1.0",
    ]


@needs_simulator
def test_a_child_forked_before_first_use_can_use_the_device(run: Callable[[str], str]) -> None:
    assert run(PRELUDE + "torch.sim.device_count(); torch.sim.empty_cache(); in_child(use)") == "1.0"
