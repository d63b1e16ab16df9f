"""How far a metric may exceed its baseline: by what kind of quantity it is, or by the stage that it is of.

A rule for a stage names it as a profiler does, alone (``DecodingStage``) or with its path (``run/DecodingStage``),
or by a pattern (``Decod*``); a name in small letters is written ``stage:decode``. The most particular rule counts:
a path before a name, a name before a pattern, the pattern with more letters before the other, all before the
rule of the kind. Code wins over the option, the option over the environment, the environment over the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType

from devicekit.contract.errors import ConfigurationError
from devicekit.documents import read_toml
from devicekit.files import UnreadableFile

VARIABLE = "DEVICEKIT_BASELINE_TOLERANCES"
FILE_VARIABLE = "DEVICEKIT_BASELINE_TOLERANCES_FILE"
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
    # Of a stage's rule: whether it is for the bytes of that stage, and not for its seconds.
    of_memory: bool = False

    def limit(self, expected: float) -> float:
        """The largest value that passes."""
        return max(expected * (1 + self.relative), expected + self.absolute)


Tolerances = Mapping["MetricKind | str", Tolerance]
"""By kind, or by a stage's name, path or pattern."""

DEFAULT_TOLERANCES: Tolerances = MappingProxyType(
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
_MEMORY_UNITS = frozenset({"B", "KiB", "MiB", "GiB"})
_MEMORY_KINDS = frozenset({MetricKind.MEMORY, MetricKind.LOAD_MEMORY, MetricKind.HOST_MEMORY})
_STAGE, _BYTES = "stage:", ":bytes"
_ENTRY = re.compile(r"(?P<kind>[^\s=,]+)=(?P<relative>[\d.]+)(?:\+(?P<absolute>[\d.]+)(?P<unit>[A-Za-z]*))?")


def parse_tolerances(text: str) -> Tolerances:
    """Read overrides such as ``"stage=0.5,step=0.3+20ms,DecodingStage=0.9+250ms"``: what, relative, absolute.

    An absolute part that is left out is 0. A stage's rule in bytes is for its memory, any other for its time.

    Raises:
        ConfigurationError: an entry is not of that form, or names an unknown kind or unit.
    """
    found: dict[MetricKind | str, Tolerance] = {}
    for entry in filter(None, map(str.strip, text.split(","))):
        matched = _ENTRY.fullmatch(entry)
        try:
            if matched is None:
                raise ValueError
            absolute = float(matched["absolute"] or 0) * _UNITS[matched["unit"] or ""]
            key = _key(matched["kind"])
            of_memory = not isinstance(key, MetricKind) and matched["unit"] in _MEMORY_UNITS
            if of_memory:
                key = f"{key}{_BYTES}"
            found[key] = Tolerance(float(matched["relative"]), absolute, of_memory)
        except (KeyError, ValueError):
            kinds = ", ".join(kind.value for kind in MetricKind)
            raise ConfigurationError(
                f"{entry[:100]!r} is no tolerance. Write kind=relative or kind=relative+absolute, as in "
                "step=0.3+20ms; "
                f"kinds are {kinds}, units {', '.join(filter(None, _UNITS))}. A stage is written by its name, as "
                "in DecodingStage=0.9+250ms, or as in stage:decode=0.9+250ms."
            ) from None
    return found


def read_tolerances(path: str | Path) -> Tolerances:
    """Read overrides from the table ``[tolerances]`` of a TOML file, as in ``DecodingStage = "0.9+250ms"``.

    Raises:
        ConfigurationError: the file cannot be read, or an entry is none.
    """
    try:
        document = read_toml(path)
    except UnreadableFile as error:
        raise ConfigurationError(str(error)) from error
    table = document.get("tolerances", {})
    if not isinstance(table, dict):
        raise ConfigurationError(f"{path}: [tolerances] is no table.")
    found: dict[MetricKind | str, Tolerance] = {}
    for name, value in table.items():
        try:
            found |= parse_tolerances(f"{name}={value}")
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {str(error)[:500]}") from None
    return found


def tolerances_from(environ: Mapping[str, str]) -> Tolerances:
    """The defaults, with what the file of ``DEVICEKIT_BASELINE_TOLERANCES_FILE`` overrides, and over that
    ``DEVICEKIT_BASELINE_TOLERANCES``.

    Raises:
        ConfigurationError: a variable or the file cannot be read.
    """
    file = environ.get(FILE_VARIABLE)
    return {
        **DEFAULT_TOLERANCES,
        **(read_tolerances(file) if file else {}),
        **parse_tolerances(environ.get(VARIABLE, "")),
    }


def rule_for(name: str, kind: MetricKind, tolerances: Tolerances) -> tuple[str, Tolerance]:
    """The rule that judges a metric, as it is written, and its tolerance.

    Args:
        name: as in a run: the path of a stage, a colon, and what of it was measured.
    """
    path = name.rpartition(":")[0] or name
    wants_memory = kind in _MEMORY_KINDS
    fitting = [
        (_rank(key.removesuffix(_BYTES), path), key)
        for key, tolerance in tolerances.items()
        if not isinstance(key, MetricKind)
        and (kind.is_time or wants_memory)
        and tolerance.of_memory == wants_memory
        and _rank(key.removesuffix(_BYTES), path) is not None
    ]
    if fitting:
        _, key = max(fitting, key=lambda one: one[0] or (0, 0))
        return key, tolerances[key]
    return kind.value, tolerances[kind]


def _rank(pattern: str, path: str) -> tuple[int, int] | None:
    """How particular a rule is for a stage; ``None``: it is not for it."""
    last = path.rpartition("/")[2]
    if pattern == path and "/" in path:
        return (3, 0)
    if pattern in (last, path):
        return (2, 0)
    if fnmatchcase(path if "/" in pattern else last, pattern):
        return (1, sum(character not in "*?[]" for character in pattern))
    return None


def _key(text: str) -> MetricKind | str:
    """A kind, or a stage's name. What could be a kind misspelt is neither."""
    if text.startswith(_STAGE) and len(text) > len(_STAGE):
        return text.removeprefix(_STAGE)
    if text.islower() and text.isidentifier():
        return MetricKind(text)
    if text[0].isalpha() or text[0] in "*?[_":
        return text
    raise ValueError
