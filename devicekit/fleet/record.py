"""What a fleet remembers: who belongs to it, which weights it has, and which update is under way.

One JSON file, replaced whole at each change, and locked by the process that steers. Where the process is killed,
the next one reads in which phase it was and goes on from what the engines say of themselves.
"""

from __future__ import annotations

import enum
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from devicekit.contract.errors import ConfigurationError
from devicekit.fleet.errors import FleetBusy

_LARGEST = 16 << 20  # bytes


class Phase(str, enum.Enum):
    """How far an update has come."""

    PREPARING = "preparing"  # nothing is written anywhere: give up
    WRITING = "writing"  # some may have written: go on
    CONTINUING = "continuing"  # all have written: let them generate
    ROLLING = "rolling"  # one engine after the other: go on
    TAKING_BACK = "taking_back"  # some wrote and others cannot: back to the weights before


@dataclass(frozen=True, slots=True)
class Served:
    """Weights that the fleet has, as engines confirmed them."""

    version: str
    path: str | None  # a directory where every engine finds them; None: unknown
    checksum: str


@dataclass(frozen=True, slots=True)
class Update:
    """An update under way."""

    id: str
    path: str
    version: str
    phase: Phase
    flush_cache: bool = True


@dataclass(frozen=True, slots=True)
class FleetRecord:
    """The content of the file."""

    members: tuple[str, ...] = ()
    served: Served | None = None
    update: Update | None = None
    held: tuple[str, ...] = ()  # engines that must not generate: what they have is not the fleet's


class RecordFile:
    """The file of a fleet, held by this process."""

    def __init__(self, path: Path, record: FleetRecord) -> None:
        self.path = path
        self.record = record

    def save(self, **changes: object) -> FleetRecord:
        """Change fields of the record, on disk before this returns."""
        record = replace(self.record, **changes)  # type: ignore[arg-type]  # fields of the record, by name
        beside = self.path.with_name(f".{self.path.name}.new")
        with beside.open("w") as file:
            json.dump(asdict(record), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self.path)
        self.record = record
        return record


@contextmanager
def open_record(path: Path, members: Sequence[str] = ()) -> Iterator[RecordFile]:
    """Hold the file of a fleet; the file is made where there is none.

    Args:
        members: the engines that there must be; none: those that the file names.

    Raises:
        FleetBusy: another process holds it; the message says which.
        ConfigurationError: it cannot be read or written, holds something else, or no engine is known.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"The fleet's file {path} cannot be used: {error}") from error
    with os.fdopen(handle, "r+") as holder:
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = holder.read().strip() or "another process"
            raise FleetBusy(f"{who} steers the fleet of {path} now.") from error
        holder.truncate(0)
        holder.seek(0)
        holder.write(f"Process {os.getpid()} on {socket.gethostname()}")
        holder.flush()
        file = RecordFile(path, _read(path))
        if members and tuple(members) != file.record.members:
            file.save(members=tuple(members))
        if not file.record.members:
            raise ConfigurationError(f"{path} names no engine yet: name all that belong to the fleet.")
        yield file
        holder.truncate(0)


def _read(path: Path) -> FleetRecord:
    try:
        if path.exists() and path.stat().st_size > _LARGEST:
            raise ConfigurationError(f"{path} is too large to be a fleet's file.")
        content = json.loads(path.read_text()) if path.exists() else {}
        if not isinstance(content, dict):
            raise TypeError("it holds no JSON object")
        return _parse(content)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigurationError(f"{path} is no fleet's file: {type(error).__name__}: {error}") from error


def _parse(content: dict[str, object]) -> FleetRecord:
    served, update = content.get("served"), content.get("update")
    members, held = content.get("members", []), content.get("held", [])
    if not isinstance(members, list) or not isinstance(held, list):
        raise TypeError("members and held are lists")
    parsed = None
    if isinstance(update, dict):
        parsed = Update(**{**update, "phase": Phase(update["phase"])})
    return FleetRecord(
        members=tuple(str(one) for one in members),
        served=Served(**served) if isinstance(served, dict) else None,
        update=parsed,
        held=tuple(str(one) for one in held),
    )
