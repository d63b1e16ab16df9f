"""``python -m bench.ranks``: memory and processor time of a decode step where 1, 2 or 4 ranks hold one model."""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypedDict, cast

import torch
import torch.distributed as dist

from devicekit.devtools.reference import write_model
from devicekit.engine import Engine, EngineConfig
from devicekit.scheduling.ranks.group import RankGroup
from devicekit.scheduling.ranks.scheduler import LockstepScheduler
from devicekit.scheduling.request import SamplingParams
from devicekit.scheduling.state import SchedulerState

# 310 million parameters, of which the two embeddings are 65.
_MODEL: Mapping[str, object] = MappingProxyType(
    {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 32_000,
        "initializer_range": 0.02,
    }
)
_RUNNING = 8
_STEPS = 24
_WARM = 4
_SETTLED = 61.0  # seconds: a file that was written just now is read twice, and kept whole meanwhile


class Measured(TypedDict):
    """One rank's figures: bytes, and seconds of a decode step."""

    weights: int
    keys: int
    peak: int
    cpu: float
    wall: float


def main() -> int:
    """Print a table; each line is one number of ranks."""
    parser = argparse.ArgumentParser(prog="python -m bench.ranks", description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="default: 1 2 4")
    parser.add_argument("--rank", nargs=3, metavar=("DIR", "PORT", "RANK/SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        path, port, place = options.rank
        rank, size = map(int, place.split("/"))
        print(json.dumps(_measure(path, int(port), rank, size)))
        return 0
    with tempfile.TemporaryDirectory() as path:
        write_model(path, seed=1, settings=_MODEL)
        time.sleep(_SETTLED)
        print(
            f"decode step, {_RUNNING} requests running, float32, one thread a rank; of one rank, and of all\n"
        )
        print("| ranks | weights, MiB | KV pool, MiB | peak of the process, MiB | CPU, ms | CPU of all, ms |")
        print("|---:|---:|---:|---:|---:|---:|")
        for size in options.ranks:
            found = _all_ranks(path, size)
            cells = [max(one[key] for one in found) / 2**20 for key in ("weights", "keys", "peak")]
            cpu = [one["cpu"] * 1e3 for one in found]
            shown = " | ".join(f"{cell:,.0f}" for cell in cells)
            print(f"| {size} | {shown} | {max(cpu):.0f} | {sum(cpu):.0f} |", flush=True)
    return 0


def _all_ranks(path: str, size: int) -> list[Measured]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "bench.ranks", "--rank", path, str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*command, f"{rank}/{size}"], stdout=subprocess.PIPE, text=True, env=environment)
        for rank in range(size)
    ]
    answers = [process.communicate()[0] for process in processes]
    return [cast("Measured", json.loads(answer)) for answer in answers]


def _measure(path: str, port: int, rank: int, size: int) -> Measured:
    torch.set_num_threads(1)
    ranks = None
    if size > 1:
        meeting = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
        ranks = RankGroup()
    config = EngineConfig(kv_tokens=4096, tensor_parallel=None if ranks is None else size)
    engine = Engine.open(path, "cpu", config=config, ranks=ranks)
    steps = _lead(engine) if rank == 0 else _follow(cast("LockstepScheduler", engine.scheduler))
    timed = steps[_WARM : _WARM + _STEPS]
    return {
        "weights": engine.weight_bytes,
        "keys": engine.plan.pool_bytes,
        "peak": _peak(),
        "cpu": statistics.median(cpu for cpu, _ in timed),
        "wall": statistics.median(wall for _, wall in timed),
    }


def _peak() -> int:
    """Most bytes of memory that this process had; getrusage would count those of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def _lead(engine: Engine) -> list[tuple[float, float]]:
    """Seconds of processor and of clock, of each step in which all requests decode."""
    params = SamplingParams(max_new_tokens=_WARM + _STEPS + 8, temperature=0, ignore_eos=True)
    going = [engine.submit([7 + one] * 16, params) for one in range(_RUNNING)]
    steps = []
    while not all(one.done for one in going):
        steps += _timed(engine.scheduler.state, engine.step)
    if engine.ranks > 1:
        engine.scheduler.close()
    return steps


def _follow(scheduler: LockstepScheduler) -> list[tuple[float, float]]:
    steps = []
    while not scheduler.closed:
        steps += _timed(scheduler.state, scheduler.step)
    return steps


def _timed(state: SchedulerState, step: Callable[[], object]) -> list[tuple[float, float]]:
    decoding = len(state.requests.running) == _RUNNING
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    spent = time.process_time() - cpu, time.perf_counter() - wall
    return [spent] if decoding else []


if __name__ == "__main__":
    sys.exit(main())
