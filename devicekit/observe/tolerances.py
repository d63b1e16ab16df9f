"""How far a metric may exceed its baseline, by what kind of quantity it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from devicekit.contract.errors import ConfigurationError

VARIABLE = "DEVICEKIT_BASELINE_TOLERANCES"
_MIB = float(1 << 20)


class MetricKind(str, Enum):
    """What a metric measures. Seconds and bytes; smaller is better throughout."""

    END_TO_END = "end_to_end"  # seconds of the whole run
    STAGE = "stage"  # seconds of one stage
    FIRST_STEP = "first_step"  # seconds; includes warming up
    STEP = "step"  # seconds of one repeated step
    AVERAGE_STEP = "average_step"  # seconds, over all steps
    LOAD_TIME = "load_time"  # seconds
    LOAD_MEMORY = "load_memory"  # peak bytes while loading
    MEMORY = "memory"  # peak bytes while running
    HOST_MEMORY = "host_memory"  # bytes
    EXACT = "exact"  # bytes or counts that are the same in every run

    @property
    def is_time(self) -> bool:
        return self in _TIMES


_TIMES = frozenset(
    {
        MetricKind.END_TO_END,
        MetricKind.STAGE,
        MetricKind.FIRST_STEP,
        MetricKind.STEP,
        MetricKind.AVERAGE_STEP,
        MetricKind.LOAD_TIME,
    }
)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """A metric passes if and only if ``actual <= max(expected * (1 + relative), expected + absolute)``."""

    relative: float
    absolute: float = 0.0  # in the metric's own unit

    def limit(self, expected: float) -> float:
        """The largest value that passes."""
        return max(expected * (1 + self.relative), expected + self.absolute)


DEFAULT_TOLERANCES: Mapping[MetricKind, Tolerance] = MappingProxyType(
    {
        MetricKind.END_TO_END: Tolerance(0.25, 0.020),
        MetricKind.STAGE: Tolerance(0.80, 0.120),
        MetricKind.FIRST_STEP: Tolerance(4.0, 0.080),
        MetricKind.STEP: Tolerance(0.30, 0.020),
        MetricKind.AVERAGE_STEP: Tolerance(0.20, 0.020),
        MetricKind.LOAD_TIME: Tolerance(0.40),
        MetricKind.LOAD_MEMORY: Tolerance(0.01, 128 * _MIB),
        MetricKind.MEMORY: Tolerance(0.02, 128 * _MIB),
        MetricKind.HOST_MEMORY: Tolerance(0.0, 256 * _MIB),
        MetricKind.EXACT: Tolerance(0.0),
    }
)

_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "B": 1.0, "KiB": 1024.0, "MiB": _MIB, "GiB": 1024 * _MIB}
_ENTRY = re.compile(r"(?P<kind>\w+)=(?P<relative>[\d.]+)(?:\+(?P<absolute>[\d.]+)(?P<unit>[A-Za-z]*))?")


def parse_tolerances(text: str) -> Mapping[MetricKind, Tolerance]:
    """Read overrides such as ``"stage=0.5,step=0.3+20ms,memory=0.02+64MiB"``: kind, relative, absolute.

    An absolute part that is left out is 0.

    Raises:
        ConfigurationError: an entry is not of that form, or names an unknown kind or unit.
    """
    found: dict[MetricKind, Tolerance] = {}
    for entry in filter(None, map(str.strip, text.split(","))):
        matched = _ENTRY.fullmatch(entry)
        try:
            if matched is None:
                raise ValueError
            absolute = float(matched["absolute"] or 0) * _UNITS[matched["unit"] or ""]
            found[MetricKind(matched["kind"])] = Tolerance(float(matched["relative"]), absolute)
        except (KeyError, ValueError):
            kinds = ", ".join(kind.value for kind in MetricKind)
            raise ConfigurationError(
                f"{entry!r} is no tolerance. Write kind=relative or kind=relative+absolute, as in step=0.3+20ms; "
                f"kinds are {kinds}, units {', '.join(filter(None, _UNITS))}."
            ) from None
    return found


def tolerances_from(environ: Mapping[str, str]) -> Mapping[MetricKind, Tolerance]:
    """The defaults, with what ``DEVICEKIT_BASELINE_TOLERANCES`` overrides.

    Raises:
        ConfigurationError: the variable cannot be read.
    """
    return {**DEFAULT_TOLERANCES, **parse_tolerances(environ.get(VARIABLE, ""))}
