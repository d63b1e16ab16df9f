"""One run's metrics and where they come from: what a baseline is made of and compared with."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from devicekit.contract.errors import ConfigurationError
from devicekit.device import Device
from devicekit.documents import finite_number, read_json
from devicekit.files import UnreadableFile
from devicekit.observe.stages import StageProfiler
from devicekit.observe.tolerances import MetricKind

# Where in a sequence of steps single ones are compared: an average hides a step that got slow.
_FRACTIONS = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One number: seconds, bytes or a count, by its kind. Smaller is better."""

    value: float
    kind: MetricKind


@dataclass(frozen=True, slots=True)
class Provenance:
    """On what the numbers were measured. ``None``: not known."""

    backend: str
    device: str | None
    driver: str | None
    versions: Mapping[str, str]  # of Python, torch, devicekit and the plugin
    machine: str

    def differences(self, other: Provenance) -> Sequence[str]:
        """What differs, in words."""
        mine, others = _flat(self), _flat(other)
        return [
            f"{key} was {mine.get(key)}, is {others.get(key)}"
            for key in {**mine, **others}
            if mine.get(key) != others.get(key)
        ]


@dataclass(frozen=True, slots=True)
class Run:
    """The metrics of one run, by name."""

    metrics: Mapping[str, Metric]
    provenance: Provenance

    def write(self, path: str | Path) -> None:
        """Write as JSON; `read` reads it back."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Run:
        """Read what `write` wrote.

        Raises:
            ConfigurationError: the file cannot be read, or is no run.
        """
        document = read_document(path)
        try:
            return cls(metrics_from(document["metrics"]), provenance_from(document["provenance"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(f"{path} is not a run's metrics: {repr(error)[:300]}") from error


def provenance_of(device: Device, *, driver: str | None = None) -> Provenance:
    """Where numbers measured now on ``device`` come from.

    Args:
        driver: the driver's version, where the device does not say.
    """
    candidate = device.backend.candidate
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in ("torch", "devicekit")}
    if candidate.version is not None:
        versions[candidate.distribution] = candidate.version
    properties = device.properties()
    return Provenance(device.name, properties.name, properties.driver or driver, versions, platform.machine())


def metrics_of(profiler: StageProfiler, *, steps: Sequence[str] = ()) -> Mapping[str, Metric]:
    """The metrics of a profiled run: for each stage its seconds and its peak bytes, where known.

    A stage's time is the device's where the device tells, and the host's otherwise; passages add up. The outermost
    stages count as end to end.

    Args:
        steps: names of stages that repeat. They count one by one: the first, samples along the way, the average.
    """
    found: dict[str, Metric] = {}
    for stage in profiler.summary():
        name = "/".join(stage.path)
        if stage.path[-1] in steps:
            found |= _step_metrics(name, _times(profiler, stage.path))
        else:
            kind = MetricKind.STAGE if len(stage.path) > 1 else MetricKind.END_TO_END
            found[f"{name}:seconds"] = Metric(sum(_times(profiler, stage.path)), kind)
        if stage.peak is not None:
            found[f"{name}:peak_bytes"] = Metric(stage.peak, MetricKind.MEMORY)
    return found


def _times(profiler: StageProfiler, path: tuple[str, ...]) -> list[float]:
    passages = [stage for stage in profiler.records if stage.path == path]
    on_device = [stage.device_seconds for stage in passages]
    if None in on_device:
        return [stage.wall_seconds for stage in passages]
    return [seconds for seconds in on_device if seconds is not None]


def _step_metrics(name: str, times: Sequence[float]) -> Mapping[str, Metric]:
    last = len(times) - 1
    chosen = {fraction: times[round(fraction * last)] for fraction in _FRACTIONS if last}
    return {
        f"{name}:first": Metric(times[0], MetricKind.FIRST_STEP),
        **{f"{name}:at_{one:.0%}": Metric(time, MetricKind.STEP) for one, time in chosen.items()},
        f"{name}:average": Metric(sum(times) / len(times), MetricKind.AVERAGE_STEP),
    }


def read_document(path: str | Path) -> Mapping[str, object]:
    """A JSON object from a file.

    Raises:
        ConfigurationError: the file cannot be read or holds something else.
    """
    try:
        document = read_json(path)
    except UnreadableFile as error:
        raise ConfigurationError(str(error)) from error
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path} holds no JSON object.")
    return document


def metrics_from(document: object) -> Mapping[str, Metric]:
    """Metrics by name, from their JSON form.

    Raises:
        KeyError, TypeError, ValueError: it is no such form.
    """
    found: dict[str, Metric] = {}
    for name, one in table_of(document).items():
        entry = table_of(one)
        found[name] = Metric(finite_number(entry["value"]), MetricKind(entry["kind"]))
    return found


def provenance_from(document: object) -> Provenance:
    """A provenance, from its JSON form. Raises as `metrics_from`."""
    told = dict(table_of(document))
    versions = table_of(told["versions"])
    if any(not isinstance(one, str) for one in (told["backend"], told["machine"], *versions.values())):
        raise TypeError("backend, machine and versions are texts")
    if any(not isinstance(told[name], (str, type(None))) for name in ("device", "driver")):
        raise TypeError("device and driver are texts or null")
    return Provenance(**told)  # type: ignore[arg-type]  # checked above


def table_of(document: object) -> Mapping[str, object]:
    """A JSON object; raises `TypeError` where it is none."""
    if not isinstance(document, dict):
        raise TypeError(f"{str(document)[:100]!r} is no JSON object")
    return document


def _flat(provenance: Provenance) -> Mapping[str, str | None]:
    return {
        "backend": provenance.backend,
        "device": provenance.device,
        "driver": provenance.driver,
        "machine": provenance.machine,
        **provenance.versions,
    }
