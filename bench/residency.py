"""Benchmarks of residency: peak bytes and time of a pipeline, against keeping everything and naive moving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bench.harness import Row
from bench.machines import fine_grained, simulated
from devicekit.residency import (
    ComponentOffload,
    LargeReleaseRule,
    LayerwiseOffload,
    Residency,
    Resident,
    SnapshotOffload,
)
from devicekit.residency.components import Mode
from examples.pipeline import ExamplePipeline, Moves

_TOKENS = torch.arange(20).reshape(2, 10)
_REQUESTS = 3  # the last is measured: by then everything is where it stays between requests
_MODES: dict[str, dict[str, Mode]] = {
    "keeping everything": {"all": Resident()},
    "component offload": {"all": ComponentOffload()},
    "snapshot offload": {"all": SnapshotOffload()},
    "layer-wise transformer": {"all": SnapshotOffload(), "transformer": LayerwiseOffload()},
}


def run() -> list[Row]:
    """Peaks and times, and what they are of the two alternatives."""
    measured = {"naive moving": _measure(None), **{name: _measure(modes) for name, modes in _MODES.items()}}
    rows: list[Row] = []
    for name, (peak, seconds) in measured.items():
        rows.append(Row(f"pipeline, most reserved, {name}", peak, "B"))
        rows.append(Row(f"pipeline, device time, {name}", seconds * 1e6, "us"))
    kept, naive = measured["keeping everything"], measured["naive moving"]
    layerwise, snapshot = measured["layer-wise transformer"], measured["snapshot offload"]
    return [
        *rows,
        Row("memory of layer-wise against keeping everything", layerwise[0] / kept[0], "x", target=0.5),
        Row("memory of layer-wise against naive moving", layerwise[0] / naive[0], "x", target=0.75),
        Row("time of layer-wise against naive moving", layerwise[1] / naive[1], "x", target=1.0),
        Row("time of snapshots against naive moving", snapshot[1] / naive[1], "x", target=0.8),
    ]


class _NaiveMoves:
    """What a pipeline does by hand: move in, move out."""

    def __init__(self, pipeline: ExamplePipeline, device: torch.device) -> None:
        self._pipeline = pipeline
        self._device = device

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        (use,) = next(stage.uses for stage in self._pipeline.stages() if stage.name == name)
        module = self._pipeline.components[use.component].to(self._device)
        yield
        module.to("cpu")


def _measure(modes: dict[str, Mode] | None) -> tuple[int, float]:
    """Most bytes reserved and virtual seconds of one request, with the machine of a mid-sized card."""
    with simulated(fine_grained(copy_bandwidth=2e9, kernel_seconds=2e-5)) as (machine, device):
        pipeline = ExamplePipeline()
        moves: Moves = _NaiveMoves(pipeline, device.torch_device)
        residency: Residency | None = None
        if modes is not None:
            moves = residency = Residency(
                pipeline.components, device, modes, rule=LargeReleaseRule(1 << 18), prefetch_margin=0
            )
        seconds = 0.0
        for _ in range(_REQUESTS):
            device.reset_peak_memory_stats()
            began = machine.clock.now()
            if residency is not None:
                residency.begin_request(pipeline.stages())
            pipeline.run(_TOKENS, device.torch_device, moves)
            if residency is not None:
                residency.finish_request()
            device.synchronize()
            seconds = machine.clock.now() - began
        return device.memory_stats().peak_reserved or 0, seconds
