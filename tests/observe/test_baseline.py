"""Baselines are recorded from several runs, and later runs compared with them, metric by metric."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from devicekit import Device
from devicekit.cli import main
from devicekit.contract.errors import ConfigurationError
from devicekit.observe import StageProfiler
from devicekit.observe.baseline import Baseline, Outcome, compare
from devicekit.observe.run import Metric, Provenance, Run, metrics_of, provenance_of
from devicekit.observe.tolerances import MetricKind, Tolerance
from devicekit.testing import MIB, SimConfig, Simulator

HERE = Provenance("npu", "Ascend 910", "24.1", {"torch": "2.9"}, "aarch64")


def run_of(**values: float) -> Run:
    kinds = {"step": MetricKind.STEP, "peak": MetricKind.MEMORY, "count": MetricKind.EXACT}
    return Run({name: Metric(value, kinds[name]) for name, value in values.items()}, HERE)


def test_a_baseline_is_the_highest_of_its_runs_with_a_margin() -> None:
    baseline = Baseline.from_runs([run_of(step=2.0, peak=100, count=7), run_of(step=3.0, peak=90, count=7)])
    assert {name: metric.value for name, metric in baseline.metrics.items()} == pytest.approx(
        {"step": 3.0 * 1.05, "peak": 100 * 1.01, "count": 7}
    )
    assert (baseline.runs, baseline.provenance) == (2, HERE)


@pytest.mark.parametrize(
    ("runs", "complaint"),
    [
        ([], "at least one run"),
        ([run_of(step=1), run_of(peak=1)], "peak, step"),
        ([run_of(count=1), run_of(count=2)], "count is exact"),
        ([run_of(step=1), replace(run_of(step=1), provenance=replace(HERE, device="Other"))], "Other"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(runs: list[Run], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        Baseline.from_runs(runs)


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        (1.3, Outcome.PASSED),
        (1.3001, Outcome.EXCEEDED),
        (0.8, Outcome.PASSED),
        (0.79, Outcome.IMPROVED),
        (float("nan"), Outcome.EXCEEDED),
    ],
)
def test_a_metric_passes_up_to_its_limit_and_improves_beyond_a_fifth(value: float, outcome: Outcome) -> None:
    baseline = Baseline({"step": Metric(1.0, MetricKind.STEP)}, HERE, 5)
    report = compare(baseline, run_of(step=value), {MetricKind.STEP: Tolerance(0.3, 0.02)})
    assert [one.outcome for one in report.comparisons] == [outcome]
    assert report.passed == (outcome is not Outcome.EXCEEDED)
    assert report.exit_status == (1 if outcome is Outcome.EXCEEDED else 0)
    assert ("re-baseline" in str(report)) == (outcome is Outcome.IMPROVED)


def test_a_missing_metric_fails_and_a_new_one_is_mentioned() -> None:
    baseline = Baseline.from_runs([run_of(peak=10)])
    report = compare(baseline, run_of(count=3))
    assert {one.name: one.outcome for one in report.comparisons} == {
        "peak": Outcome.MISSING,
        "count": Outcome.NEW,
    }
    assert not report.passed
    assert "Not in the baseline, re-baseline: count." in report.advice


def test_numbers_from_elsewhere_are_named_as_such() -> None:
    baseline = Baseline.from_runs([run_of(peak=10)])
    other = replace(run_of(peak=10), provenance=replace(HERE, versions={"torch": "2.10"}, driver=None))
    report = compare(baseline, other)
    assert report.differences == ("driver was 24.1, is None", "torch was 2.9, is 2.10")
    assert report.passed


def test_few_runs_are_advised_against_where_times_count() -> None:
    assert "at least 5" in str(compare(Baseline.from_runs([run_of(step=1)]), run_of(step=1)))
    assert "at least 5" not in str(compare(Baseline.from_runs([run_of(count=1)]), run_of(count=1)))


def test_files_read_back(tmp_path: Path) -> None:
    run = run_of(step=1.5, count=2)
    run.write(tmp_path / "run.json")
    assert Run.read(tmp_path / "run.json") == run
    baseline = Baseline.from_runs([run])
    baseline.write(tmp_path / "baseline.json")
    assert Baseline.read(tmp_path / "baseline.json") == baseline


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"metrics": {"a": 1}, "provenance": {}, "runs": 1}'])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    for read in (Run.read, Baseline.read):
        with pytest.raises(ConfigurationError, match=r"other\.json"):
            read(path)


def test_metrics_of_a_profiled_run(sim: Device, machine: Simulator) -> None:
    kernel = machine.config.kernel_seconds
    profiler = StageProfiler(sim)
    held = torch.zeros(MIB, dtype=torch.uint8, device=sim.torch_device)
    with profiler.stage("generate"):
        with profiler.stage("prefill"):
            held.add_(1)
        for step in range(11):
            with profiler.stage("decode"):
                for _ in range(step + 1):
                    held.add_(1)
    sim.synchronize()
    metrics = metrics_of(profiler, steps=["decode"])
    assert metrics["generate:seconds"].kind is MetricKind.END_TO_END
    assert metrics["generate/prefill:seconds"].value == pytest.approx(kernel)
    assert metrics["generate/decode:first"].value == pytest.approx(kernel)
    assert metrics["generate/decode:at_40%"].value == pytest.approx(5 * kernel)
    assert metrics["generate/decode:average"].value == pytest.approx(6 * kernel)
    assert metrics["generate:peak_bytes"] == Metric(0, MetricKind.MEMORY)
    assert provenance_of(sim).device == "Simulated accelerator"
    assert provenance_of(sim).versions["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("machine", "driver"),
    [(SimConfig(), "24.1"), (SimConfig(driver_version="25.0"), "25.0")],
    indirect=["machine"],
)
def test_the_driver_is_as_the_device_says_and_else_as_given(sim: Device, driver: str) -> None:
    assert provenance_of(sim, driver="24.1").driver == driver


def test_the_command_records_and_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, slow = tmp_path / "base.json", tmp_path / "slow.json"
    for number in range(5):
        run_of(step=1.0, count=3).write(tmp_path / f"{number}.json")
    run_of(step=2.0, count=3).write(slow)
    runs = [str(tmp_path / f"{number}.json") for number in range(5)]
    assert main(["baseline", "record", *runs, "-o", str(base)]) == 0
    assert main(["baseline", "compare", str(base), runs[0]]) == 0
    capsys.readouterr()
    assert main(["baseline", "compare", str(base), str(slow), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False
    assert {one["name"]: one["outcome"] for one in report["comparisons"]} == {
        "step": "exceeded",
        "count": "passed",
    }
    monkeypatch.setenv("DEVICEKIT_BASELINE_TOLERANCES", "step=1.0")
    assert main(["baseline", "compare", str(base), str(slow)]) == 0
    assert main(["baseline", "compare", str(base), str(slow), "--tolerances", "step=0.1"]) == 1
    assert main(["baseline", "compare", str(base), str(slow), "--tolerances", "nonsense"]) == 1
