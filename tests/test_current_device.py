"""Whatever thread an engine's work is done in, every hook is called with the engine's device current."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import devicekit
from devicekit import hookimpl
from devicekit.contract import HOOKS, Manifest
from devicekit.engine import Engine, EngineConfig
from devicekit.scheduling.messages import Flush
from devicekit.scheduling.request import Request, SamplingParams, prompt_array
from devicekit.server.loop import EngineLoop
from devicekit.testing import Simulator, sim_backend
from devicekit.testing.sim_backend import SimBackend

# They say which devices there are and which is current, or change it; and pure facts of the vendor.
WHEREVER = {
    "is_available",
    "device_count",
    "current_index",
    "set_index",
    "classify_error",
    "collective_backend",
}
WHEREVER |= {"visible_devices_variable", "is_bad_fork", "profiler_activity"}

seen: list[tuple[str, int, str]] = []  # hook, current device, thread


def spying(name: str):
    real = getattr(SimBackend, name)

    @functools.wraps(real)
    def call(self, *arguments):
        seen.append((name, torch.sim.current_device(), threading.current_thread().name))
        return real(self, *arguments)

    names = ", ".join(HOOKS[name].parameters)
    space: dict[str, object] = {"call": call}
    exec(f"def {name}(self, {names}):\n    return call(self, {names})", space)
    return hookimpl(space[name])


@pytest.fixture
def spy(sim_machine: Simulator) -> Iterator[devicekit.Device]:
    """Device 1 of a simulated machine, behind hooks that note which device is current."""
    hooks = {name: spying(name) for name in HOOKS if hasattr(SimBackend, name)}
    plain = sim_backend.manifest()
    table = {
        "name": "spy",
        "device_type": "sim",
        "contract": ">=1.1,<2",
        "capabilities": sorted(plain.capabilities),
        "noop": sorted(plain.noop),
    }
    devicekit.register_backend(type("Spy", (), hooks), Manifest.parse({"backend": table}))
    seen.clear()
    yield devicekit.get_device("spy:1")
    devicekit.unregister_backend("spy")


def strays() -> set[tuple[str, int, str]]:
    return {one for one in seen if one[1] != 1 and one[0] not in WHEREVER}


def without_index() -> set[str]:
    return {name for name, *_ in seen if "index" not in HOOKS[name].parameters}


def test_calls_without_an_index_are_made_on_the_device(spy: devicekit.Device) -> None:
    kept = torch.ones(3, device=spy.torch_device)
    host = spy.pin_memory(torch.ones(3))
    spy.empty_pinned((2,))
    spy.register_host_memory(free := torch.ones(5))
    spy.unregister_host_memory(free)
    spy.import_ipc(spy.export_ipc(kept))
    spy.empty_cache()
    spy.release_cache()
    spy.empty_host_cache()
    spy.collect_ipc()
    asked = without_index()
    assert {
        "pin_memory",
        "empty_cache",
        "empty_host_cache",
        "collect_ipc",
        "import_ipc",
        "export_ipc",
    } <= asked
    assert {name for name, *_ in strays() if name in asked} <= {"host_memory_stats"}  # looking moves nothing
    assert torch.sim.current_device() == 0
    assert host.is_pinned()


def test_releasing_before_the_first_use_initialises_nothing(
    spy: devicekit.Device, sim_machine: Simulator
) -> None:
    assert spy.release_cache()
    spy.empty_cache()
    spy.empty_host_cache()
    assert not sim_machine.initialized


def test_a_step_runs_on_the_engines_device(spy: devicekit.Device, checkpoints: tuple[Path, Path]) -> None:
    engine = Engine.open(checkpoints[0], device=spy, config=EngineConfig(kv_tokens=64))
    for index in (0, 1):
        seen.clear()
        with devicekit.get_device(f"spy:{index}").current():
            engine.generate([[1, 2, 3]], max_new_tokens=3)
            assert engine.flush(empty_cache=True)
            assert torch.sim.current_device() == index
        assert any(name == "empty_cache" for name, *_ in seen)
        assert strays() == set()


def test_the_servers_thread_is_on_the_engines_device_in_every_hook(
    spy: devicekit.Device, checkpoints: tuple[Path, Path]
) -> None:
    engine = Engine.open(checkpoints[0], device=spy, config=EngineConfig(kv_tokens=64))
    looked: list[int] = []

    async def serve() -> None:
        loop = EngineLoop(engine.scheduler, on_tick=lambda: looked.append(torch.sim.current_device()))
        loop.start()
        loop.submit([Request("r", prompt_array([1, 2, 3]), SamplingParams(max_new_tokens=3))])
        await loop.perform(Flush("f", timeout=30.0, empty_cache=True))
        await loop.stop()

    seen.clear()
    asyncio.run(asyncio.wait_for(serve(), 60))
    assert any((name, thread) == ("empty_cache", "devicekit-engine") for name, _, thread in seen)
    assert set(looked) == {1}
    assert {one for one in strays() if one[2] == "devicekit-engine"} == set()
