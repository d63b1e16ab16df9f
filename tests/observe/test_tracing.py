"""A tracer records every hook call of a backend, with its bytes and errors, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from devicekit import Device
from devicekit.contract.errors import HookError
from devicekit.observe import StageProfiler, Tracer, write_chrome_trace
from devicekit.testing import MIB, Fault, Raise, Simulator


def test_each_call_is_a_span_with_device_duration_and_bytes(sim: Device) -> None:
    torch.empty(30 * MIB, dtype=torch.uint8, device=sim.torch_device)
    with Tracer(sim) as tracer:
        sim.synchronize()
        released = sim.empty_cache()
        sim.pin_memory(torch.zeros(256))
    hooks = [span.hook for span in tracer.spans]
    asked = ("synchronize", "empty_cache", "pin_memory")
    assert [hook for hook in hooks if hook in asked] == list(asked)
    emptied = hooks.index("empty_cache")
    assert "memory_stats" in hooks[:emptied]
    assert "memory_stats" in hooks[emptied:]
    spans = {span.hook: span for span in tracer.spans}
    assert (spans["synchronize"].backend, spans["synchronize"].index) == ("sim", 1)
    assert (spans["empty_cache"].index, spans["empty_cache"].bytes) == (None, 30 * MIB)
    assert released.released == 30 * MIB
    assert spans["pin_memory"].bytes == 1024
    assert all(span.seconds > 0 and span.error is None for span in tracer.spans)


def test_a_raising_hook_is_recorded_and_raises_as_before(sim: Device, machine: Simulator) -> None:
    with (
        Tracer(sim) as tracer,
        machine.inject(Fault("synchronize", Raise(lambda: ValueError("no")))),
        pytest.raises(HookError, match="ValueError: no"),
    ):
        sim.synchronize()
    assert (tracer.spans[0].hook, tracer.spans[0].error) == ("synchronize", "ValueError: no")


def test_nothing_is_recorded_after_removal_and_hooks_are_direct_again(sim: Device) -> None:
    direct = sim.backend.function("synchronize")
    tracer = Tracer(sim, hooks=["synchronize"])
    with tracer:
        assert sim.backend.function("synchronize") != direct
        assert sim.backend.function("memory_stats") is not None
    assert sim.backend.function("synchronize") == direct
    sim.synchronize()
    assert tracer.spans == ()


def test_only_chosen_hooks_are_traced_and_an_unknown_one_is_refused(sim: Device) -> None:
    with Tracer(sim, hooks=["memory_info"]) as tracer:
        sim.synchronize()
        sim.memory_info()
    assert [span.hook for span in tracer.spans] == ["memory_info"]
    with pytest.raises(ValueError, match="memory_inf"):
        Tracer(sim, hooks=["memory_inf"])


def test_the_buffer_keeps_the_latest(cpu: Device) -> None:
    with Tracer(cpu, capacity=2) as tracer:
        cpu.synchronize()
        cpu.memory_info()
        cpu.current_index()
    assert [span.hook for span in tracer.spans] == ["memory_info", "current_index"]


def test_two_tracers_see_the_same_calls(cpu: Device) -> None:
    with Tracer(cpu) as one, Tracer(cpu) as other:
        cpu.synchronize()
    assert [span.hook for span in one.spans] == [span.hook for span in other.spans] == ["synchronize"]


def test_a_trace_viewer_shows_calls_inside_the_stages_that_made_them(sim: Device, tmp_path: Path) -> None:
    torch.empty(1, device=sim.torch_device)
    profiler = StageProfiler(sim, memory=False)
    with Tracer(sim, hooks=["synchronize"]) as tracer, profiler.stage("step"):
        sim.synchronize()
    path = tmp_path / "trace.json"
    write_chrome_trace(path, tracer.spans, profiler.records)
    call, stage = json.loads(path.read_text())["traceEvents"]
    assert (call["name"], call["cat"], call["ph"]) == ("synchronize", "required", "X")
    assert call["args"] == {"device": "sim:1"}
    assert (stage["name"], stage["cat"], stage["tid"]) == ("step", "stage", call["tid"])
    assert stage["ts"] <= call["ts"]
    assert call["ts"] + call["dur"] <= stage["ts"] + stage["dur"]
    assert stage["args"]["device_seconds"] >= 0
