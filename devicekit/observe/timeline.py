"""What a device's memory did over time: allocated, reserved and free bytes, and what happened meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

from devicekit.contract.errors import ConfigurationError
from devicekit.documents import UnreadableDocument, finite_number, parse_json, read_lines
from devicekit.files import UnreadableFile

_MOST_BYTES = 1 << 62


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
            # Whatever follows the last line end is still being written.
            return cls.parse((line for line in read_lines(path) if line.endswith("\n")), str(path))
        except UnreadableFile as error:
            raise ConfigurationError(f"The recording cannot be read: {error}") from error

    @classmethod
    def parse(cls, lines: Iterable[str], name: str = "the recording") -> Timeline:
        """Read a recording from its lines.

        Raises:
            ConfigurationError: they are none.
        """
        all_lines = iter(lines)
        try:
            first = next(all_lines, None)
            if first is None:
                raise ConfigurationError(f"{name} is no timeline: it is empty.")
            head = parse_json(first, "it")
            if not isinstance(head, dict) or not isinstance(head["timeline"], str):
                raise TypeError("there is no name of a device")
            timeline = cls(head["timeline"])
        except (UnreadableDocument, TypeError, KeyError) as error:
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
                entry = parse_json(line, "a line")
                if not isinstance(entry, dict):
                    raise TypeError("it is no JSON object")
                if "label" in entry:
                    self.marks.append(_mark(entry))
                else:
                    self.samples.append(_sample(entry))
            except (UnreadableDocument, ValueError, TypeError, KeyError) as error:
                raise ConfigurationError(
                    f"{name} has a line that is not of a timeline: {line[:200]!r} ({str(error)[:200]})"
                ) from error


def _sample(entry: Mapping[str, Any]) -> Sample:
    for name in ("allocated", "reserved", "free", "total"):
        _require_bytes(entry.get(name))
    return Sample(**{**entry, "at": finite_number(entry["at"])})


def _mark(entry: Mapping[str, Any]) -> Mark:
    if not isinstance(entry["label"], str):
        raise TypeError("a label is a text")
    _require_bytes(entry.get("released"))
    seconds = entry.get("seconds")
    typed = {
        "at": finite_number(entry["at"]),
        "kind": MarkKind(entry["kind"]),
        "seconds": None if seconds is None else finite_number(seconds),
    }
    return Mark(**{**entry, **typed})


def _require_bytes(value: object) -> None:
    # What is released is a difference, and may be negative.
    if value is not None and (type(value) is not int or abs(value) > _MOST_BYTES):
        raise TypeError(f"{str(value)[:100]!r} is no number of bytes")


def write_head(file: TextIO, timeline: Timeline) -> None:
    """The first line of a recording."""
    _write(file, {"timeline": timeline.device})


def write_entry(file: TextIO, entry: Sample | Mark) -> None:
    """One further line of a recording."""
    _write(file, asdict(entry))


def _write(file: TextIO, line: Mapping[str, object]) -> None:
    file.write(json.dumps(line) + "\n")
