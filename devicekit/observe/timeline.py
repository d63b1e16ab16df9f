"""What a device's memory did over time: allocated, reserved and free bytes, and what happened meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import TextIO

from devicekit.contract.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a device, in bytes. ``None``: the backend does not say, or could only by initialising."""

    at: float  # seconds of the recorder's clock
    allocated: int | None
    reserved: int | None
    free: int | None
    total: int | None = None


class MarkKind(str, Enum):
    """What a mark stands for."""

    VERB = "verb"  # a function of the device or the engine was called
    RELEASE = "release"  # a release point was passed, and the cache emptied
    NOTE = "note"  # somebody's own words


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a moment."""

    at: float  # seconds of the recorder's clock
    kind: MarkKind
    label: str
    released: int | None = None  # bytes handed back to the driver
    seconds: float | None = None  # how long it took


@dataclass(slots=True)
class Timeline:
    """A recording: samples and marks, each in the order of time."""

    device: str  # as in "npu:1"
    samples: list[Sample] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    @property
    def total(self) -> int | None:
        """The device's memory, bytes, as last seen."""
        return next((one.total for one in reversed(self.samples) if one.total is not None), None)

    @property
    def started(self) -> float:
        """Seconds of the first entry; 0 where there is none."""
        return min([one.at for one in self.samples[:1]] + [mark.at for mark in self.marks[:1]], default=0.0)

    def write(self, path: str | Path) -> None:
        """Write the recording as JSON lines; `read` reads it back."""
        with Path(path).open("w", encoding="utf-8") as file:
            write_head(file, self)
            entries: list[Sample | Mark] = [*self.samples, *self.marks]
            for entry in sorted(entries, key=lambda entry: entry.at):
                write_entry(file, entry)

    @classmethod
    def read(cls, path: str | Path) -> Timeline:
        """Read what `write`, or a recorder with a file, has written; an unfinished last line is left out.

        Raises:
            ConfigurationError: the file is no recording, or cannot be read.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"The recording {path} cannot be read: {error}") from error
        # Whatever follows the last line end is still being written.
        return cls.parse(lines[:-1], str(path))

    @classmethod
    def parse(cls, lines: Iterable[str], name: str = "the recording") -> Timeline:
        """Read a recording from its lines.

        Raises:
            ConfigurationError: they are none.
        """
        all_lines = iter(lines)
        try:
            head = json.loads(next(all_lines))
            timeline = cls(head["timeline"])
        except StopIteration:
            raise ConfigurationError(f"{name} is no timeline: it is empty.") from None
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigurationError(f"{name} is no timeline: {error!r} in its first line.") from error
        timeline.extend(all_lines, name)
        return timeline

    def extend(self, lines: Iterable[str], name: str = "the recording") -> None:
        """Add further lines of a recording.

        Raises:
            ConfigurationError: one of them is not of a recording.
        """
        for line in lines:
            try:
                entry = json.loads(line)
                if "label" in entry:
                    self.marks.append(Mark(**entry | {"kind": MarkKind(entry["kind"])}))
                else:
                    self.samples.append(Sample(**entry))
            except (ValueError, TypeError, KeyError) as error:
                raise ConfigurationError(f"{name} has a line that is not of a timeline: {line!r}") from error


def write_head(file: TextIO, timeline: Timeline) -> None:
    """The first line of a recording."""
    _write(file, {"timeline": timeline.device})


def write_entry(file: TextIO, entry: Sample | Mark) -> None:
    """One further line of a recording."""
    _write(file, asdict(entry))


def _write(file: TextIO, line: Mapping[str, object]) -> None:
    file.write(json.dumps(line) + "\n")
