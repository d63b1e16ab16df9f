"""What observing costs a decode step: a memory scope, the stage profiler, release points, and no observer at all.

The step is a whole one, of the example model with eight requests running, on the device that is chosen by default.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from bench.harness import Row, Timing, measure, measure_by, timed_row
from devicekit.device import Device, get_device
from devicekit.engine import Engine, EngineConfig
from devicekit.observe import NO_PROFILER, Recorder, StageProfiler, Statistics, Tracer, memory_scope, watch
from devicekit.release import ReleasePoint, ReleasePoints
from devicekit.scheduling.request import SamplingParams
from examples.checkpoints import write_example_checkpoint

_RUNNING = 8
_WARM, _STEPS = 16, 100
_SHARE = 1.0  # percent of a step that an observer may cost


def run() -> list[Row]:
    """Every row, cheapest observer first."""
    device = get_device()
    step = _decode_step(device)
    rows = [timed_row(f"decode step of the example model, {_RUNNING} running", step)]
    names = {
        "device": device,
        "scope": memory_scope,
        "points": ReleasePoints(device),
        "point": ReleasePoint.IDLE,
    }
    scope = "with scope(device):\n pass"
    stage = "with profiler.stage('step'):\n pass"
    profilers = {
        "no profiler": NO_PROFILER,
        "profiler, without memory": StageProfiler(device, memory=False, keep=1000),
        "profiler": StageProfiler(device, keep=1000),
    }
    costs = {"a hook, after its tracer is gone": _extra_after_tracing(device)}
    for case, profiler in profilers.items():
        costs[f"a stage, {case}"] = measure(stage, {"profiler": profiler})
    costs["a memory scope"] = measure(scope, names)
    costs["a release point passed idle"] = measure("points.reach(point)", names)
    for case, cost in costs.items():
        rows.append(timed_row(case, cost))
        share = 100 * max(0.0, cost.multiple) / step.multiple
        rows.append(Row(f"{case}: share of a step", share, "%", target=_SHARE))
    # Once per interval, not per step: no share of one is asked of it.
    rows.append(timed_row("a timeline sample", measure("recorder.sample()", {"recorder": Recorder(device)})))
    rows.append(timed_row("an operator under watch", _watched(device)))
    return rows


def _decode_step(device: Device) -> Timing:
    """Wall time of a step: what a step on an accelerator takes is not the host's time."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_example_checkpoint(Path(folder) / "model", seed=1)
        engine = Engine.open(path, device, config=EngineConfig(max_running=_RUNNING))
        params = SamplingParams(max_new_tokens=_WARM + _STEPS + 8, temperature=0, ignore_eos=True)
        for number in range(_RUNNING):
            engine.submit([number + 3, 5, 7], params)

        def once() -> float:
            started = time.perf_counter()
            engine.step()
            return time.perf_counter() - started

        for _ in range(_WARM):
            once()
        return measure_by(once, samples=_STEPS)


def _extra_after_tracing(device: Device) -> Timing:
    """By how much a hook is slower once a tracer has come and gone."""
    before = measure("read()", {"read": device.memory_stats})
    with Tracer(device):
        pass
    return measure("read()", {"read": device.memory_stats}).beyond(before)


def _watched(device: Device) -> Timing:
    """What `watch` adds to one operator."""
    numbers = torch.ones(8, device=device.torch_device)
    plain = measure("a + a", {"a": numbers})
    with ExitStack() as stack:
        stack.enter_context(watch(device, Statistics()))
        return measure("a + a", {"a": numbers}).beyond(plain)
