"""What runs used to cost, and whether a later run still does: for time, memory and counts, in anybody's CI.

::

    baseline = Baseline.from_runs(runs)         # five or more, of the same thing on the same machine
    baseline.write("baseline.json")
    report = compare(Baseline.read("baseline.json"), run)
    print(report)
    sys.exit(report.exit_status)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import cast

from devicekit.contract.errors import ConfigurationError
from devicekit.observe.run import (
    Metric,
    Provenance,
    Run,
    metrics_from,
    provenance_from,
    read_document,
)
from devicekit.observe.tolerances import DEFAULT_TOLERANCES, MetricKind, Tolerances, rule_for

ENOUGH_RUNS = 5
_IMPROVED = 0.8  # of the expected: worth a new baseline
_TIME_MARGIN, _MEMORY_MARGIN = 1.05, 1.01


@dataclass(frozen=True, slots=True)
class Baseline:
    """Expected values, what they were measured on, and in how many runs."""

    metrics: Mapping[str, Metric]
    provenance: Provenance
    runs: int

    @classmethod
    def from_runs(cls, runs: Sequence[Run]) -> Baseline:
        """The highest value of each metric, with a margin of 5 % for times and 1 % for memory.

        Raises:
            ConfigurationError: there is no run; runs differ in provenance or metrics; an exact metric varies.
        """
        if not runs:
            raise ConfigurationError("A baseline needs at least one run.")
        first = runs[0]
        for number, run in enumerate(runs[1:], 2):
            if differences := first.provenance.differences(run.provenance):
                raise ConfigurationError(f"Run {number} is from elsewhere: {'; '.join(differences)}.")
            if odd := sorted(first.metrics.keys() ^ run.metrics.keys()):
                raise ConfigurationError(f"Not every run has the metrics {', '.join(odd)}.")
        metrics = {
            name: _expected(name, metric.kind, [run.metrics[name].value for run in runs])
            for name, metric in first.metrics.items()
        }
        return cls(metrics, first.provenance, len(runs))

    def write(self, path: str | Path) -> None:
        """Write as JSON, sorted, one number a line: made for version control."""
        Path(path).write_text(json.dumps(asdict(self), indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Baseline:
        """Read what `write` wrote.

        Raises:
            ConfigurationError: the file cannot be read, or is no baseline.
        """
        document = read_document(path)
        try:
            runs = document["runs"]
            if not isinstance(runs, int) or isinstance(runs, bool) or runs < 1:
                raise TypeError("runs must be a number of 1 or more")
            return cls(metrics_from(document["metrics"]), provenance_from(document["provenance"]), runs)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(f"{path} is no baseline: {repr(error)[:300]}") from error


class Outcome(str, Enum):
    """The result of comparing one metric."""

    PASSED = "passed"
    IMPROVED = "improved"  # by more than 20 %: the baseline is out of date
    EXCEEDED = "exceeded"
    MISSING = "missing"  # the run does not have it
    NEW = "new"  # the baseline does not have it


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric against its baseline."""

    name: str
    outcome: Outcome
    kind: MetricKind
    expected: float | None
    actual: float | None
    limit: float | None  # the largest value that would have passed
    rule: str = ""  # whose limit it is: a kind, or a stage's name, path or pattern

    @property
    def failed(self) -> bool:
        return self.outcome in (Outcome.EXCEEDED, Outcome.MISSING)

    def __str__(self) -> str:
        numbers = (
            f"{word} {value:.6g}"
            for word, value in (("is", self.actual), ("was", self.expected), ("limit", self.limit))
            if value is not None
        )
        by = f" (by {self.rule})" if self.rule else ""
        return f"{self.outcome.value:<9} {self.name}: {', '.join(numbers)}{by}"


@dataclass(frozen=True, slots=True)
class Report:
    """A run against a baseline."""

    comparisons: tuple[Comparison, ...]
    differences: tuple[str, ...]  # in provenance: numbers of another machine say little
    advice: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not any(one.failed for one in self.comparisons)

    @property
    def exit_status(self) -> int:
        """0 if every metric passed, otherwise 1."""
        return 0 if self.passed else 1

    def as_json(self) -> str:
        """The report for machines."""
        return json.dumps({"passed": self.passed, **asdict(self)}, indent=2)

    def __str__(self) -> str:
        lines = [str(one) for one in self.comparisons]
        lines += [f"measured elsewhere: {difference}" for difference in self.differences]
        return "\n".join([*lines, *self.advice, "passed" if self.passed else "FAILED"])


def compare(baseline: Baseline, run: Run, tolerances: Tolerances = DEFAULT_TOLERANCES) -> Report:
    """Compare every metric. One that the run lacks fails; one that the baseline lacks is only mentioned.

    Args:
        tolerances: kinds that are not among them have their default.
    """
    tolerances = {**DEFAULT_TOLERANCES, **tolerances}
    comparisons = tuple(
        _compare(name, baseline.metrics.get(name), run.metrics.get(name), tolerances)
        for name in {**baseline.metrics, **run.metrics}
    )
    return Report(
        comparisons,
        tuple(baseline.provenance.differences(run.provenance)),
        tuple(_advice(comparisons, baseline)),
    )


def _compare(
    name: str,
    expected: Metric | None,
    actual: Metric | None,
    tolerances: Tolerances,
) -> Comparison:
    if expected is None:
        metric = cast(Metric, actual)
        return Comparison(name, Outcome.NEW, metric.kind, None, metric.value, None)
    rule, tolerance = rule_for(name, expected.kind, tolerances)
    limit = tolerance.limit(expected.value)
    if actual is None:
        return Comparison(name, Outcome.MISSING, expected.kind, expected.value, None, limit, rule)
    if not actual.value <= limit:  # so that not-a-number fails
        outcome = Outcome.EXCEEDED
    elif actual.value < expected.value * _IMPROVED:
        outcome = Outcome.IMPROVED
    else:
        outcome = Outcome.PASSED
    return Comparison(name, outcome, expected.kind, expected.value, actual.value, limit, rule)


def _advice(comparisons: Sequence[Comparison], baseline: Baseline) -> list[str]:
    advice: list[str] = []
    improved = [one.name for one in comparisons if one.outcome is Outcome.IMPROVED]
    if improved:
        advice.append(f"Improved by more than 20 %, re-baseline: {', '.join(improved)}.")
    added = [one.name for one in comparisons if one.outcome is Outcome.NEW]
    if added:
        advice.append(f"Not in the baseline, re-baseline: {', '.join(added)}.")
    times = any(one.kind.is_time for one in comparisons)
    if times and baseline.runs < ENOUGH_RUNS:
        advice.append(
            f"The baseline has {baseline.runs} runs; times need at least {ENOUGH_RUNS} to be worth comparing."
        )
    return advice


def _expected(name: str, kind: MetricKind, values: Sequence[float]) -> Metric:
    if kind is MetricKind.EXACT:
        if len(set(values)) > 1:
            raise ConfigurationError(f"{name} is exact, but was {', '.join(f'{one:g}' for one in values)}.")
        return Metric(values[0], kind)
    return Metric(max(values) * (_TIME_MARGIN if kind.is_time else _MEMORY_MARGIN), kind)
