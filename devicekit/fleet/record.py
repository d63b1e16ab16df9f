"""What a fleet remembers: who belongs to it, which weights it has, and which update is under way.

One JSON file, replaced whole at each change, and locked by the process that steers. Where the process is killed,
the next one reads in which phase it was and goes on from what the engines say of themselves.
"""

from __future__ import annotations

import enum
import json
import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from devicekit.contract.errors import ConfigurationError
from devicekit.documents import parse_json, read_text
from devicekit.files import UnreadableFile
from devicekit.fleet.errors import RecordNotWritten
from devicekit.fleet.lock import Lock, locked

_LARGEST = 16 << 20  # bytes


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
    """The file of a fleet, held by this process.

    Attributes:
        left_out: engines that belonged to the fleet until this process named others.
    """

    def __init__(self, path: Path, lock: Lock) -> None:
        """Raises `ConfigurationError` if what is there is no fleet's file."""
        self.path = path
        self.left_out: tuple[str, ...] = ()
        self._lock = lock
        self.record, self._text = _read(path)

    def save(self, **changes: object) -> FleetRecord:
        """Change fields of the record. The change is on disk before this returns.

        Raises:
            RecordNotWritten: it cannot be written, or somebody else has: the record is the old one.
            FleetBusy: another process has the file.
        """
        record = replace(self.record, **changes)  # type: ignore[arg-type]  # fields of the record, by name
        text = json.dumps(asdict(record), indent=1)
        try:
            self._lock.renew()
            if _text(self.path) not in (None, self._text):
                raise UnreadableFile("somebody else has written into it since this process read or wrote it")
            _replace(self.path, text)
        except (OSError, UnreadableFile, ConfigurationError) as error:
            raise RecordNotWritten(
                f"The fleet's file {self.path} cannot be written: {error}. It is left as it is; engines that are "
                "held stay held until this is put right: then devicekit fleet resume, and tend."
            ) from error
        self.record, self._text = record, text
        return record


def _text(path: Path) -> str | None:
    """What a file holds; ``None``: there is none. Raises `UnreadableFile`."""
    return read_text(path, _LARGEST) if os.path.lexists(path) else None


def _replace(path: Path, text: str) -> None:
    """Give a file another content, whole or not at all."""
    beside = path.with_name(f".{path.name}.new")
    # Cut short before, or somebody's pipe or link: not to be written to.
    beside.unlink(missing_ok=True)
    try:
        with open(beside, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # of a file system that cannot
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # so that the name leads to the new one after a loss of power too
        finally:
            os.close(folder)


def _followed(path: Path) -> Path:
    """What a path leads to, so that there is one lock however it is called, and a link stays one."""
    real = Path(os.path.realpath(path))
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        kind = stat.S_IFREG
    except OSError as error:  # a loop of links, or no right to look
        raise ConfigurationError(f"The fleet's file {path} cannot be used: {error}") from error
    if kind != stat.S_IFREG:
        raise ConfigurationError(f"{path} is no fleet's file: it is no regular file.")
    return real


@contextmanager
def open_record(path: Path, members: Sequence[str] = (), *, sourced: bool = False) -> Iterator[RecordFile]:
    """Hold the file of a fleet. It is created if there is none.

    Args:
        members: the engines that there must be; none: those that the file names.
        sourced: another source says later who they are.

    Raises:
        FleetBusy: another process holds it; the message says which.
        ConfigurationError: it cannot be read or locked, holds something else, or no engine is known.
        RecordNotWritten: it cannot be written.
    """
    if twice := sorted({one for one in members if members.count(one) > 1}):
        raise ConfigurationError(f"{', '.join(twice)} is named twice: each engine belongs to a fleet once.")
    path = _followed(path)
    with locked(path) as lock:
        file = RecordFile(path, lock)
        if members and tuple(members) != file.record.members:
            held = tuple(one for one in file.record.held if one in members)
            file.left_out = tuple(one for one in file.record.members if one not in members)
            file.save(members=tuple(members), held=held)
        if not path.exists():
            file.save()  # so that its identity is kept
        if not file.record.members and not sourced:
            raise ConfigurationError(f"{path} names no engine yet: name all that belong to the fleet.")
        yield file


def _read(path: Path) -> tuple[FleetRecord, str | None]:
    try:
        text = _text(path)
        content = {} if text is None else parse_json(text, str(path))
        if not isinstance(content, dict):
            raise TypeError("it holds no JSON object")
        return _parse(content), text
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
