"""The rule by which a metric passes, and how users change its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from devicekit.contract.environment import check_environment
from devicekit.contract.errors import ConfigurationError
from devicekit.observe.baseline import Baseline, Outcome, compare
from devicekit.observe.run import Metric, Provenance, Run
from devicekit.observe.tolerances import (
    DEFAULT_TOLERANCES,
    FILE_VARIABLE,
    VARIABLE,
    MetricKind,
    Tolerance,
    parse_tolerances,
    rule_for,
    tolerances_from,
)


@pytest.mark.parametrize(
    ("expected", "limit"),
    [(1.0, 1.25), (0.01, 0.03), (0.0, 0.02), (0.08, 0.1)],
)
def test_the_wider_of_the_relative_and_the_absolute_limit_counts(expected: float, limit: float) -> None:
    assert Tolerance(0.25, 0.02).limit(expected) == pytest.approx(limit)


def test_every_kind_has_a_default_and_exact_means_exact() -> None:
    assert set(DEFAULT_TOLERANCES) == set(MetricKind)
    assert DEFAULT_TOLERANCES[MetricKind.EXACT].limit(17) == 17


def test_overrides_name_kind_relative_and_absolute_with_units() -> None:
    assert parse_tolerances("stage=0.5, step=0.3+20ms,memory=0.02+64MiB,") == {
        MetricKind.STAGE: Tolerance(0.5, 0.0),
        MetricKind.STEP: Tolerance(0.3, 0.02),
        MetricKind.MEMORY: Tolerance(0.02, 64 * 1024**2),
    }


def test_the_environment_overrides_the_defaults_and_its_variable_is_known() -> None:
    found = tolerances_from({VARIABLE: "exact=0.1"})
    assert found[MetricKind.EXACT] == Tolerance(0.1)
    assert found[MetricKind.STEP] == DEFAULT_TOLERANCES[MetricKind.STEP]
    check_environment({VARIABLE: ""})


@pytest.mark.parametrize("text", ["step", "step=a", "steps=0.1", "step=0.1+3parsec", "step=0.1+", "step=-1"])
def test_what_cannot_be_read_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"step=0\.3\+20ms"):
        parse_tolerances(text)


# -- By stage -------------------------------------------------------------------------------------------------


def judged(text: str, name: str, kind: MetricKind = MetricKind.STAGE) -> tuple[str, Tolerance]:
    return rule_for(name, kind, {**DEFAULT_TOLERANCES, **parse_tolerances(text)})


@pytest.mark.parametrize(
    ("text", "name", "rule"),
    [
        ("DecodingStage=0.9+250ms", "run/DecodingStage:seconds", "DecodingStage"),
        ("DecodingStage=0.9+250ms", "run/TextStage:seconds", "stage"),
        ("run/DecodingStage=0.1,DecodingStage=0.9", "run/DecodingStage:seconds", "run/DecodingStage"),
        ("Decod*=0.1,*=0.5,*Stage=0.2", "run/DecodingStage:seconds", "Decod*"),
        ("*=0.5,DecodingStage=0.1", "run/DecodingStage:seconds", "DecodingStage"),
        ("run/*=0.5", "run/DecodingStage:seconds", "run/*"),
        ("stage:decode=0.5", "run/decode:seconds", "decode"),
        ("stage:decode=0.5", "run/decoder:seconds", "stage"),
    ],
)
def test_the_most_particular_rule_judges_a_stage(text: str, name: str, rule: str) -> None:
    assert judged(text, name)[0] == rule


def test_relative_and_absolute_hold_together_and_other_stages_are_as_they_were() -> None:
    _, tolerance = judged("DecodingStage=0.9+250ms", "run/DecodingStage:seconds")
    assert (tolerance.relative, tolerance.absolute) == (0.9, 0.25)
    assert tolerance.limit(0.1) == pytest.approx(0.35)
    assert tolerance.limit(10.0) == pytest.approx(19.0)
    assert judged("DecodingStage=0.9+250ms", "run/Other:seconds")[1] == DEFAULT_TOLERANCES[MetricKind.STAGE]


def test_a_stages_bytes_have_a_rule_of_their_own() -> None:
    text = "DecodingStage=0.9+250ms,DecodingStage=0.1+64MiB"
    assert judged(text, "run/DecodingStage:seconds")[1].absolute == 0.25
    assert judged(text, "run/DecodingStage:peak_bytes", MetricKind.MEMORY)[1].absolute == 64 * 1024**2
    assert judged("DecodingStage=0.9", "run/DecodingStage:peak_bytes", MetricKind.MEMORY)[0] == "memory"


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tolerances.toml"
    file.write_text('[tolerances]\nDecodingStage = "0.9+250ms"\n"Text*" = "0.1"\nstep = "0.7"\n')
    found = tolerances_from({FILE_VARIABLE: str(file), VARIABLE: "DecodingStage=0.2"})
    assert found["DecodingStage"] == Tolerance(0.2)
    assert (found["Text*"], found[MetricKind.STEP]) == (Tolerance(0.1), Tolerance(0.7))
    check_environment({FILE_VARIABLE: str(file)})
    file.write_text('[tolerances]\nstepp = "0.7"\n')
    with pytest.raises(ConfigurationError, match="stepp"):
        tolerances_from({FILE_VARIABLE: str(file)})


def test_the_report_says_which_rule_judged_which_stage() -> None:
    metrics = {
        "run/DecodingStage:seconds": Metric(1.0, MetricKind.STAGE),
        "run/TextStage:seconds": Metric(1.0, MetricKind.STAGE),
    }
    slower = {name: Metric(1.85, MetricKind.STAGE) for name in metrics}
    here = Provenance("npu", "Ascend 910", "24.1", {"torch": "2.9"}, "aarch64")
    report = compare(
        Baseline(metrics, here, 5), Run(slower, here), parse_tolerances("DecodingStage=0.9+250ms")
    )
    rules = {one.name: (one.outcome, one.rule) for one in report.comparisons}
    assert rules["run/DecodingStage:seconds"] == (Outcome.PASSED, "DecodingStage")
    assert rules["run/TextStage:seconds"] == (Outcome.EXCEEDED, "stage")
    assert "(by DecodingStage)" in str(report)
    assert '"rule": "DecodingStage"' in report.as_json()
