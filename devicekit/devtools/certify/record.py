"""What a part found: numbers with units, checks, and how it ended, on disk as soon as it is known."""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast


class Status(str, enum.Enum):
    """How a part ended."""

    RUNNING = "running"  # it has said nothing of its end; left by a part that crashed or was ended
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Number:
    """A figure that was measured; ``None``: unknown."""

    name: str
    value: float | int | None
    unit: str


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold; ``holds`` is ``None`` where it could not be decided."""

    sentence: str
    holds: bool | None
    detail: str = ""


@dataclass(slots=True)
class Outcome:
    """Everything that is known of one part."""

    part: str
    status: Status = Status.RUNNING
    reason: str = ""  # why it failed or was skipped
    seconds: float | None = None  # that its process took
    cpu_seconds: float | None = None  # of its process and of those it waited for
    numbers: list[Number] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_data(self) -> dict[str, object]:
        """As plain values."""
        return {**asdict(self), "status": self.status.value}

    @classmethod
    def from_data(cls, data: Mapping[str, object]) -> Outcome:
        """What `as_data` made.

        Raises:
            KeyError, TypeError, ValueError: it is no such thing.
        """
        return cls(
            part=str(data["part"]),
            status=Status(data["status"]),
            reason=str(data["reason"]),
            seconds=cast("float | None", data["seconds"]),
            cpu_seconds=cast("float | None", data["cpu_seconds"]),
            numbers=[Number(**one) for one in cast("list[dict[str, str]]", data["numbers"])],  # type: ignore[arg-type]
            checks=[Check(**one) for one in cast("list[dict[str, str]]", data["checks"])],  # type: ignore[arg-type]
            notes=list(cast("list[str]", data["notes"])),
        )


class Skipped(Exception):
    """A part cannot be run here; the text says why."""


class Findings:
    """Where a part writes what it finds. Every line is on disk before the next one is looked for."""

    def __init__(self, part: str, file: Path) -> None:
        self.outcome = Outcome(part)
        self._file = file
        self._write()

    def number(self, name: str, value: float | int | None, unit: str) -> None:
        """A figure; ``None`` where nobody knows it."""
        self.outcome.numbers.append(Number(name, value, unit))
        self._write()

    def check(self, sentence: str, holds: bool | None, detail: str = "") -> None:
        """Whether something holds; ``None`` where it cannot be decided, and ``detail`` says why."""
        self.outcome.checks.append(Check(sentence, holds, detail))
        self._write()

    def note(self, text: str) -> None:
        """A line for the reader."""
        self.outcome.notes.append(text)
        self._write()

    def end(self, status: Status, reason: str = "") -> None:
        """The last word."""
        self.outcome.status, self.outcome.reason = status, reason
        self._write()

    def judge(self) -> None:
        """End as the checks say."""
        wrong = [one for one in self.outcome.checks if one.holds is False]
        if wrong:
            self.end(Status.FAILED, "; ".join(f"not so: {one.sentence}" for one in wrong))
        elif any(one.holds for one in self.outcome.checks):
            self.end(Status.PASSED)
        else:
            reasons = "; ".join(one.detail for one in self.outcome.checks if one.detail)
            self.end(Status.SKIPPED, f"nothing could be decided here: {reasons or 'nothing was checked'}")

    def _write(self) -> None:
        write_whole(self._file, json.dumps(self.outcome.as_data()))


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old content or the new one."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
