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
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from devicekit.contract.errors import ConfigurationError
from devicekit.documents import read_json
from devicekit.files import UnreadableFile
from devicekit.fleet.errors import FleetBusy, RecordNotWritten

_LARGEST = 16 << 20  # bytes
_LONGEST_NAME = 500  # characters


class Phase(str, enum.Enum):
    """How far an update has come."""

    PREPARING = "preparing"  # nothing is written anywhere: give up
    WRITING = "writing"  # some may have written: go on
    CONTINUING = "continuing"  # all have written: let them generate
    ROLLING = "rolling"  # one engine after the other: go on
    ROLLING_BACK = "rolling_back"  # one engine after the other gets the weights of before: go on
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
    take_back: bool = False  # where some cannot write, give all the old weights
    checksum: str = ""  # of the new weights, once an engine has confirmed them
    waiting: tuple[str, ...] = ()  # engines that generated nothing before it began


@dataclass(frozen=True, slots=True)
class FleetRecord:
    """The content of the file."""

    id: str = ""  # the fleet's identity, made with the file
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
        """Change fields of the record. The change is on disk before this returns.

        Raises:
            RecordNotWritten: it cannot be written; the record is the old one.
        """
        record = replace(self.record, **changes)  # type: ignore[arg-type]  # fields of the record, by name
        beside = self.path.with_name(f".{self.path.name}.new")
        try:
            # Cut short before, or somebody's pipe or link: not to be written to.
            beside.unlink(missing_ok=True)
            with open(beside, "x") as file:
                json.dump(asdict(record), file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.path)
        except OSError as error:
            raise RecordNotWritten(
                f"The fleet's file {self.path} cannot be written: {error}. It says what it said before; engines "
                "that are held stay held until this is put right: then devicekit fleet resume, and tend."
            ) from error
        self.record = record
        return record


def _followed(path: Path) -> Path:
    """What a path leads to, so that there is one lock however it is called, and a link stays one."""
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except OSError as error:  # a loop of links, or no right to look
        raise ConfigurationError(f"The fleet's file {path} cannot be used: {error}") from error
    return Path(os.path.realpath(path))


@contextmanager
def open_record(path: Path, members: Sequence[str] = (), *, sourced: bool = False) -> Iterator[RecordFile]:
    """Hold the file of a fleet. It is created if there is none.

    Args:
        members: the engines that there must be; none: those that the file names.
        sourced: another source says later who they are.

    Raises:
        FleetBusy: another process holds it; the message says which.
        ConfigurationError: it cannot be read or written, holds something else, or no engine is known.
    """
    path = _followed(path)
    lock = path.with_name(f".{path.name}.lock")
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
    except OSError as error:
        raise ConfigurationError(f"The fleet's file {path} cannot be used: {error}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ConfigurationError(f"The fleet's file {path} cannot be used: {lock} is no regular file.")
    with os.fdopen(handle, "r+") as holder:
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = holder.read(_LONGEST_NAME).strip() or "another process"
            raise FleetBusy(f"{who} steers the fleet of {path} now.") from error
        holder.truncate(0)
        holder.seek(0)
        holder.write(f"Process {os.getpid()} on {socket.gethostname()}")
        holder.flush()
        file = RecordFile(path, _read(path))
        if twice := sorted({one for one in members if members.count(one) > 1}):
            raise ConfigurationError(
                f"{', '.join(twice)} is named twice: each engine belongs to a fleet once."
            )
        if members and tuple(members) != file.record.members:
            held = tuple(one for one in file.record.held if one in members)
            file.save(members=tuple(members), held=held)
        if not path.exists():
            file.save()  # so that its identity is kept
        if not file.record.members and not sourced:
            raise ConfigurationError(f"{path} names no engine yet: name all that belong to the fleet.")
        yield file
        holder.truncate(0)


def _read(path: Path) -> FleetRecord:
    try:
        content = read_json(path, _LARGEST) if path.exists() else {}
        if not isinstance(content, dict):
            raise TypeError("it holds no JSON object")
        return _parse(content)
    except (UnreadableFile, ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(
            f"{path} is no fleet's file: {type(error).__name__}: {str(error)[:300]}"
        ) from error


def _parse(content: dict[str, object]) -> FleetRecord:
    if unknown := content.keys() - {one.name for one in fields(FleetRecord)}:
        raise TypeError(f"it has no {sorted(unknown)[0][:100]!r}")
    return FleetRecord(
        id=_identity(content.get("id", "")),
        members=_names(content.get("members", [])),
        served=_served(content.get("served")),
        update=_update(content.get("update")),
        held=_names(content.get("held", [])),
    )


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or any(not isinstance(one, str) for one in value):
        raise TypeError("members, held and waiting are lists of names")
    return tuple(value)


def _identity(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("id is a text")
    return value or uuid.uuid4().hex


def _served(value: object) -> Served | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("path", ""), (str, type(None))):
        raise TypeError("served is a record of texts")
    served = Served(**value)
    if not isinstance(served.version, str) or not isinstance(served.checksum, str):
        raise TypeError("version and checksum are texts")
    return served


def _update(value: object) -> Update | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise TypeError("update is a record")
    update = Update(**{**value, "phase": Phase(value["phase"]), "waiting": _names(value.get("waiting", []))})
    if any(not isinstance(one, str) for one in (update.id, update.path, update.version, update.checksum)):
        raise TypeError("id, path, version and checksum of an update are texts")
    if not isinstance(update.flush_cache, bool) or not isinstance(update.take_back, bool):
        raise TypeError("flush_cache and take_back are true or false")
    return update
