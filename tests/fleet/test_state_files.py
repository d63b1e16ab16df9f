"""Whatever stands where a fleet keeps its state, and whatever becomes of the disk: said, and nothing is lost."""

from __future__ import annotations

import json
import os
import random
import resource
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from devicekit.cli import main
from devicekit.contract.errors import ConfigurationError
from devicekit.fleet import FleetBusy, open_record
from devicekit.fleet.errors import RecordNotWritten
from tests.fleet.test_hostile import engine
from tests.fleet.test_update import Work, adopt, engines, has, quiet, resume, rolling, steer, update
from tests.seeds import drawn_seed

PLACES = ("fleet.json", ".fleet.json.lock", ".fleet.json.new")
MINE = "what another program keeps, and wants to have again"


def _socket(place: Path, other: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place))


def _large(place: Path, other: Path) -> None:
    with place.open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room


THINGS: dict[str, Callable[[Path, Path], object]] = {
    "directory": lambda place, other: place.mkdir(),
    "pipe": lambda place, other: os.mkfifo(place),
    "socket": _socket,
    "link": lambda place, other: place.symlink_to(other),
    "hard link": lambda place, other: place.hardlink_to(other),
    "link to nothing": lambda place, other: place.symlink_to(other.with_name("nothing")),
    "link to itself": lambda place, other: place.symlink_to(place),
    "link to a full device": lambda place, other: place.symlink_to("/dev/full"),
    "link to an endless device": lambda place, other: place.symlink_to("/dev/zero"),
    "nothing in it": lambda place, other: place.write_bytes(b""),
    "no text": lambda place, other: place.write_bytes(b"\xff\xfe\x00\x1b[2J"),
    "another program's": lambda place, other: place.write_text(MINE),
    "a terabyte": _large,
}
VERBS: dict[str, list[str]] = {
    "status": ["status"],
    "adopt": ["adopt"],
    "update": ["update", "--model-path", "/m", "--weight-version", "v"],
    "resume": ["resume"],
    "tend": ["tend"],
    "flush": ["flush"],
    "pause": ["pause"],
    "continue": ["continue"],
}


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("place", PLACES)
def test_whatever_stands_where_the_state_is_kept_is_told_and_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, thing: str
) -> None:
    with engine() as one:
        for number, (verb, line) in enumerate(VERBS.items()):
            folder = tmp_path / str(number)
            folder.mkdir()
            other, at = folder / "other", folder / place
            other.write_text(MINE)
            THINGS[thing](at, other)
            before = at.lstat()
            status = main(["fleet", "--file", str(folder / "fleet.json"), "--engine", one.url, *line])
            out, err = capsys.readouterr()
            assert other.read_text() == MINE, verb
            if str(folder) in err:
                assert status == 1, verb
                assert err.startswith("devicekit fleet: "), verb
                assert err.strip().isprintable(), err
                kept = at.lstat()
                assert (kept.st_ino, kept.st_size) == (before.st_ino, before.st_size), verb
            else:  # it got on, as far as the engine and what is known of its weights let it
                assert out or err.startswith("devicekit fleet: "), verb
                assert json.loads((folder / "fleet.json").read_text())["members"] == [one.url], verb


@pytest.mark.parametrize(
    "path", ["/", ".", "..", "/dev/null", "/dev/full", "/proc/self/fleet", "x" * 300, "a/b/c"]
)
def test_a_file_that_cannot_be_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fleet", "--file", path, "--engine", "http://127.0.0.1:9", "status"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("devicekit fleet: ")
    assert err.count("\n") == 1
    assert not [*tmp_path.rglob("*")]
    assert not [*tmp_path.parent.glob(f".{tmp_path.name}.*")]


@contextmanager
def _stranger() -> Iterator[Path]:
    """A folder, while this process is somebody who may not read everything."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() == 0:
            os.chmod(name, 0o1777)
            os.seteuid(65534)
            try:
                yield Path(name)
            finally:
                os.seteuid(0)
        else:
            yield Path(name)


@contextmanager
def _owner() -> Iterator[None]:
    """Within `_stranger`: the owner of everything again."""
    who = os.geteuid()
    if os.getuid() == 0:
        os.seteuid(0)
    try:
        yield
    finally:
        os.seteuid(who)


def _told(work: Callable[[], object]) -> str | None:
    """What is said of a file that cannot be used; ``None``: it was."""
    try:
        work()
    except (ConfigurationError, RecordNotWritten) as error:
        return str(error)
    return None


def _hold_one(path: Path) -> None:
    with open_record(path) as file:
        file.save(held=("http://one",))


@pytest.mark.parametrize("place", PLACES)
def test_what_this_user_may_not_read_or_write_is_told_and_left_as_it_is(place: str) -> None:
    with _stranger() as folder:
        path = folder / "fleet.json"
        with _owner():
            with open_record(path, ["http://one"]):
                pass
            path.chmod(0o644)
            (folder / place).touch()
            (folder / place).chmod(0)
            before = path.read_bytes()
        told = _told(lambda: _hold_one(path))
        assert told is None or str(path) in told
        assert told or os.getuid() != 0, "somebody else's file was written over"
        with _owner():
            (folder / place).chmod(0o600)
            assert path.read_bytes() == before or os.getuid() != 0


HOW: dict[str, Work] = {
    "adopt": adopt,
    "update": update(),
    "update, or back": update(take_back=True),
    "rolling": rolling(),
    "rolling, or back": rolling(take_back=True),
}


@contextmanager
def _room_for(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, as on a disk that is full at any byte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("how", HOW)
def test_a_disk_that_is_full_at_any_byte_loses_nothing(tmp_path: Path, how: str) -> None:
    rng = random.Random(seed := drawn_seed("FLEET_DISK_SEED"))
    sizes = [0, 1, *sorted(rng.randrange(900) for _ in range(40))]
    stopped = 0
    for size in sizes:
        file = tmp_path / f"fleet{size}"
        members = engines(3, quiet(size))
        steer(file, members, adopt)
        before = file.read_bytes()
        with _room_for(size):
            told = _told(partial(steer, file, members, HOW[how]))
        stopped += told is not None
        assert told is None or str(file) in told
        assert [*json.loads(file.read_bytes())["members"]] == [one.name for one in members], (seed, size)
        if size == 0:
            assert file.read_bytes() == before
            assert has(members, "a")
        assert not file.with_name(f".{file.name}.new").exists(), "room that is wanted elsewhere"
        steer(file, members, resume)
        if how != "adopt":
            assert steer(file, members, update("/newer", "v9"))[0].success, (seed, size)
        assert all(one.membership.steered_by is None for one in members), (seed, size)
    assert stopped > 2


def test_no_descriptor_is_left_and_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "fleet.json"
    with open_record(path, ["http://one"]) as file:
        before = path.read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(RecordNotWritten):
                file.save(held=("http://one",))
            with pytest.raises(ConfigurationError), open_record(tmp_path / "other", ["http://one"]):
                pass
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert path.read_bytes() == before
        file.save(held=("http://one",))


def _changed(path: Path) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "held": ["http://engine1"]}))


CHANGES: dict[str, Callable[[Path], object]] = {
    "written to": _changed,
    "another moved there": lambda path: os.replace(_beside(path), path),
    "cut short": lambda path: os.truncate(path, 20),
    "emptied": lambda path: os.truncate(path, 0),
    "a directory": lambda path: _instead(path, Path.mkdir),
    "a pipe": lambda path: _instead(path, os.mkfifo),
}


def _instead(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def _beside(path: Path) -> Path:
    other = path.with_name("other")
    other.write_text(path.read_text().replace("engine0", "engine7"))
    return other


def _seen(path: Path) -> tuple[int, bytes]:
    return path.lstat().st_mode, path.read_bytes() if path.is_file() else b""


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", HOW)
def test_what_somebody_else_writes_into_the_file_is_not_written_over(
    tmp_path: Path, how: str, change: str
) -> None:
    stopped = 0
    for at in range(1, 40, 3):
        world, folder = quiet(), tmp_path / str(at)
        folder.mkdir()
        members, file = engines(2, world), folder / "fleet"
        steer(file, members, adopt)
        left: list[tuple[int, bytes]] = []

        async def happen(file: Path = file, left: list[tuple[int, bytes]] = left) -> None:
            CHANGES[change](file)
            left.append(_seen(file))

        world.happenings = [(world.calls + at, happen)]
        told = _told(partial(steer, file, members, HOW[how]))
        stopped += told is not None
        assert told is None or "somebody else" in told or "not a regular file" in told
        assert left in ([], [_seen(file)]), at
        assert all(one.membership.steered_by is None for one in members), at
    assert stopped


@pytest.mark.parametrize("how", HOW)
def test_a_file_that_was_removed_meanwhile_is_there_again(tmp_path: Path, how: str) -> None:
    world, file = quiet(), tmp_path / "fleet"
    members = engines(2, world)
    steer(file, members, adopt)

    async def happen() -> None:
        file.unlink()

    world.happenings = [(world.calls + 2, happen)]
    assert steer(file, members, HOW[how])[0].success
    assert json.loads(file.read_text())["members"] == [one.name for one in members]


@pytest.mark.parametrize("by", ["nobody", "another file", "another process"])
def test_of_two_that_hold_locks_of_one_file_one_writes(tmp_path: Path, by: str) -> None:
    path, lock = tmp_path / "fleet.json", tmp_path / ".fleet.json.lock"
    with open_record(path, ["http://one"]) as first:
        lock.unlink()
        if by == "another file":
            lock.write_text("Process 1 on a machine that is gone")
        if by == "another process":
            with open_record(path) as second:
                second.save(held=("http://one",))
                with pytest.raises(FleetBusy, match=f"Process {os.getpid()}"):
                    first.save(held=())
                assert json.loads(path.read_text())["held"] == ["http://one"]
            with pytest.raises(RecordNotWritten, match="somebody else"):
                first.save(held=())
            return
        first.save(held=("http://one",))
        with pytest.raises(FleetBusy, match=f"Process {os.getpid()}"), open_record(path):
            pass
