"""Benchmarks of release points: what passing one costs, and what emptying is worth over many weight updates."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import torch

from bench.harness import Row, Yardstick, measure, timed_row
from bench.machines import fine_grained, simulated
from devicekit.device import Device, get_device
from devicekit.engine import Engine, EngineConfig
from devicekit.release import ReleasePoint, ReleasePoints, interval
from devicekit.scheduling.messages import PauseMode
from devicekit.scheduling.request import SamplingParams
from examples.checkpoints import write_example_checkpoint

UPDATES = 100


def run() -> list[Row]:
    """Every row."""
    with tempfile.TemporaryDirectory() as folder:
        versions = [
            write_example_checkpoint(Path(folder) / name, seed=seed) for seed, name in enumerate("ab")
        ]
        return [*_costs(versions[0]), *_updates(versions)]


def _costs(checkpoint: Path) -> list[Row]:
    device = get_device("cpu")
    releases = ReleasePoints(device, {ReleasePoint.IDLE: interval(1e9)})
    names = {"reach": releases.reach, "idle": ReleasePoint.IDLE, "flush": ReleasePoint.FLUSH}
    idle = measure("reach(idle)", names, Yardstick.CALL)
    engine = Engine.open(checkpoint, device, config=EngineConfig(max_running=8, kv_tokens=8192))
    params = SamplingParams(max_new_tokens=500, temperature=0.0, ignore_eos=True)
    for start in range(8):
        engine.submit([start + 1, 2, 3], params)
    engine.step()
    step = measure("step()", {"step": engine.step}, Yardstick.CALL)
    kept = measure("reach(flush, False)", names, Yardstick.CALL)
    return [
        timed_row("passing a point that does not empty", idle),
        timed_row("passing one whose skip the ledger keeps", kept),
        Row(
            "the first, of a decode step of the example model",
            100 * idle.multiple / step.multiple,
            "%",
            target=1.0,
        ),
    ]


def _updates(versions: list[Path]) -> list[Row]:
    rows: list[Row] = []
    for empty, how in ((True, "emptying on continue"), (False, "never emptying")):
        with simulated(fine_grained()) as (_, device):
            reserved = reserved_over_updates(device, versions, UPDATES, empty=empty)
        growth = max(reserved) / reserved[0]
        rows.append(Row(f"reserved after {UPDATES} updates in place, {how}", reserved[-1], "B"))
        rows.append(Row(f"most reserved of its first, {how}", growth, "x", target=1.1 if empty else None))
    return rows


def reserved_over_updates(
    device: Device, versions: list[Path], updates: int, *, empty: bool | None
) -> list[int]:
    """Bytes reserved after each of many pause-update-continue cycles, with a request in flight and none flushed.

    Prompts and the buckets that carry the weights differ in size each time, as they do in training: blocks that
    one cycle leaves behind rarely fit what the next asks for.
    """
    engine = Engine.open(versions[0], device, config=EngineConfig(max_running=4, kv_tokens=1024))
    rng = random.Random(7)
    reserved: list[int] = []
    for number in range(updates):
        request = engine.submit([rng.randrange(1, 300) for _ in range(rng.randint(4, 120))])
        engine.step()
        engine.pause(PauseMode.IN_PLACE)
        sizes = [rng.randint(20_000, 400_000) for _ in range(4)]
        buckets = [torch.empty(size, dtype=torch.uint8, device=device.torch_device) for size in sizes]
        del buckets
        engine.update_weights_from_disk(versions[number % 2], flush_cache=False)
        engine.continue_generation(empty_cache=empty)
        reserved.append(device.memory_stats().reserved or 0)
        engine.abort(request.id)
    return reserved
