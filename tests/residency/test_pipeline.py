"""A whole pipeline, text to image: the same picture to the bit, on less of the device."""

from __future__ import annotations

import gc

import pytest
import torch

from devicekit.device import Device, get_device
from devicekit.residency import (
    ComponentOffload,
    ComponentUse,
    LargeReleaseRule,
    LayerwiseOffload,
    RequestReport,
    Residency,
    SnapshotOffload,
)
from devicekit.residency.components import Mode
from devicekit.testing import KIB, Simulator
from examples.pipeline import ExamplePipeline

TOKENS = torch.arange(20).reshape(2, 10)
HOST = torch.device("cpu")
LAYERWISE: dict[str, Mode] = {"all": SnapshotOffload(), "transformer": LayerwiseOffload()}


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    return ExamplePipeline().run(TOKENS, HOST)


def run(
    device: Device, modes: dict[str, Mode], requests: int = 1, **options: int
) -> tuple[torch.Tensor, list[RequestReport]]:
    pipeline = ExamplePipeline()
    rule = LargeReleaseRule(large=256 * KIB)
    residency = Residency(pipeline.components, device, modes, rule=rule, **options)
    reports: list[RequestReport] = []
    for _ in range(requests):
        with residency.request(pipeline.stages()) as report:
            image = pipeline.run(TOKENS, device.torch_device, residency)
        reports.append(report)
    return image, reports


def peaks(device: Device) -> tuple[int, int]:
    stats = device.memory_stats()
    assert stats.peak_allocated is not None
    assert stats.peak_reserved is not None
    return stats.peak_allocated, stats.peak_reserved


MODES: dict[str, dict[str, Mode]] = {
    "resident": {},
    "component": {"all": ComponentOffload()},
    "snapshot": {"all": SnapshotOffload()},
    "layerwise": LAYERWISE,
}
# Of the 8.1 MB of weights and some activations that keeping everything takes.
MOST = {"resident": 9_000_000, "component": 5_700_000, "snapshot": 5_700_000, "layerwise": 3_700_000}


@pytest.mark.parametrize("name", MODES)
def test_the_picture_is_the_same_and_takes_less_memory(
    sim_device: Device, picture: torch.Tensor, name: str
) -> None:
    image, reports = run(sim_device, MODES[name], requests=3)
    assert torch.equal(image, picture)
    allocated, reserved = peaks(sim_device)
    assert allocated <= reserved <= MOST[name]
    if name == "resident":
        assert allocated > 8_000_000
        assert [report.bytes_in > 0 for report in reports] == [True, False, False]
    else:
        assert sim_device.memory_stats().allocated == 0


def test_the_report_says_what_each_stage_gave_back(sim_device: Device) -> None:
    _, (report,) = run(sim_device, {"all": SnapshotOffload()})
    ledger_bytes = [release.reclaimed for release in report.releases]
    assert [release.stage for release in report.releases] == ["encode", "denoise", "decode"]
    assert report.reclaimed("encode") >= 2_000_000
    assert report.reclaimed("denoise") >= 4_000_000
    assert report.reclaimed() == sum(size or 0 for size in ledger_bytes)
    assert report.bytes_out == 0
    assert not report.synchronous


def test_it_runs_where_the_whole_does_not_fit(
    sim_machine: Simulator, sim_device: Device, picture: torch.Tensor
) -> None:
    with sim_machine.other_process(sim_machine.config.capacity - 4_200_000):
        with pytest.raises(torch.OutOfMemoryError):
            run(sim_device, {})
        sim_device.empty_cache()
        image, _ = run(sim_device, LAYERWISE)
    assert torch.equal(image, picture)


@pytest.mark.parametrize("sim_machine", [{"copy_bandwidth": 2e9, "kernel_seconds": 4e-5}], indirect=True)
def test_prefetching_takes_memory_and_saves_time(sim_machine: Simulator, sim_device: Device) -> None:
    measured: list[tuple[float, int]] = []
    for margin in (1 << 30, 0):  # more than there is: nothing comes early
        sim_device.empty_cache()
        sim_device.reset_peak_memory_stats()
        before = sim_machine.clock.now()
        run(sim_device, {"all": SnapshotOffload()}, prefetch_margin=margin)
        measured.append((sim_machine.clock.now() - before, peaks(sim_device)[0]))
    (slow, small), (fast, large) = measured
    assert slow - fast > 1e-3  # the transformer came while the text encoder worked
    assert large > small + 1_000_000


@pytest.mark.parametrize("name", MODES)
def test_the_host_makes_the_same_picture_and_moves_nothing(picture: torch.Tensor, name: str) -> None:
    image, (report,) = run(get_device("cpu"), MODES[name])
    assert torch.equal(image, picture)
    assert (report.synchronous, report.bytes_in, report.bytes_out) == (True, 0, 0)


@pytest.mark.parametrize("name", MODES)
def test_dropping_a_pipeline_frees_the_device_at_once(sim_device: Device, name: str) -> None:
    gc.collect()
    gc.disable()
    try:
        run(sim_device, MODES[name])
        assert sim_device.memory_stats().allocated == 0
    finally:
        gc.enable()


def test_a_use_can_be_declared_with_flags(sim_device: Device, picture: torch.Tensor) -> None:
    pipeline = ExamplePipeline()
    residency = Residency(pipeline.components, sim_device, {"all": SnapshotOffload()})
    use = ComponentUse("text_encoder", keep_after_request=True, memory_intensive=True)
    with residency.request(pipeline.stages({"text_encoder": use})) as report:
        assert torch.equal(pipeline.run(TOKENS, sim_device.torch_device, residency), picture)
    assert residency.on_device("text_encoder") > 2_000_000
    assert [release.component for release in report.releases] == ["transformer", "decoder"]
