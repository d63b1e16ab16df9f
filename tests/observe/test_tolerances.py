"""The rule by which a metric passes, and how users change its numbers."""

from __future__ import annotations

import pytest

from devicekit.contract.environment import check_environment
from devicekit.contract.errors import ConfigurationError
from devicekit.observe.tolerances import (
    DEFAULT_TOLERANCES,
    VARIABLE,
    MetricKind,
    Tolerance,
    parse_tolerances,
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
