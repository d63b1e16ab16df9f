"""Files that are no files, that change, and that are put in the place of others."""

from __future__ import annotations

import errno
import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from devicekit.files import (
    ChangingFile,
    Stamp,
    UnreadableFile,
    open_regular,
    open_steady,
    read_regular,
    read_steady,
)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(path.parent)  # such a name may not be long
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _nothing(path: Path) -> None:
    pass


ODD: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a socket": _socket,
    "a directory": Path.mkdir,
    "a device": _device,
    "symbolic links": _loop,
    "no file": _nothing,
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_regular_file_is_told_as_what_it_is_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    ODD[kind](tmp_path / "x")
    readers = (read_regular, read_steady)
    for read in readers:
        with pytest.raises(UnreadableFile, match=kind):
            read(tmp_path / "x", 100)
    with pytest.raises(UnreadableFile, match=kind):
        Stamp.at(tmp_path / "x")


@pytest.mark.parametrize("path", ["a\0b", "a" * 5000])
def test_what_is_no_path_is_told(path: str) -> None:
    with pytest.raises(UnreadableFile, match="cannot be read"):
        read_regular(path, 1)


def test_a_file_that_became_a_pipe_between_looking_and_opening_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_text("a")
    opened = os.open

    def swapped(*arguments: object) -> int:
        path.unlink()
        os.mkfifo(path)
        return opened(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("devicekit.files.os.open", swapped)
    with pytest.raises(UnreadableFile, match="a pipe"), open_regular(path):
        pass


@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_a_file_is_read_whole_up_to_the_limit(tmp_path: Path, size: int) -> None:
    (tmp_path / "x").write_bytes(b"a" * size)
    assert read_regular(tmp_path / "x", 100) == read_steady(tmp_path / "x", 100)[0] == b"a" * size


@pytest.mark.parametrize("read", [read_regular, read_steady])
def test_a_file_that_is_larger_than_the_limit_is_refused(tmp_path: Path, read: Callable[..., object]) -> None:
    (tmp_path / "x").write_bytes(b"a" * 101)
    with pytest.raises(UnreadableFile, match="100 bytes"):
        read(tmp_path / "x", 100)


def test_a_file_whose_size_is_not_told_is_bounded_all_the_same() -> None:
    if Path("/proc/self/maps").exists():  # its size is 0, and it is not empty
        with pytest.raises(UnreadableFile, match="more than the 10 bytes"):
            read_regular("/proc/self/maps", 10)


@pytest.mark.parametrize("where", ["lseek", "readv"])
def test_a_disk_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    (tmp_path / "x").write_text("abc")

    def fail(*arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(f"devicekit.files.os.{where}", fail)
    with pytest.raises(UnreadableFile, match="Input/output error"):
        read_steady(tmp_path / "x", 100)


# -- Files that change ----------------------------------------------------------------------------------------


def _in_place(path: Path) -> None:
    path.write_bytes(b"b" * 100)


def _times_restored(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"b" * 100)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _renamed_over(path: Path) -> None:
    (path.parent / "new").write_bytes(b"a" * 100)
    (path.parent / "new").rename(path)


def _cut(path: Path) -> None:
    os.truncate(path, 50)


def _longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"a")


@pytest.mark.parametrize(
    "change",
    [_in_place, _times_restored, _renamed_over, _cut, _longer, Path.unlink],
    ids=lambda one: one.__name__,
)
def test_a_file_that_changed_since_it_was_opened_is_not_vouched_for(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a" * 100)
    with open_steady(path) as file:
        file.read(100, 0)
        change(path)
        with pytest.raises(UnreadableFile):
            file.require_unchanged()
    if path.exists():
        with pytest.raises(ChangingFile), open_steady(path, file.stamp):
            pass


def test_a_file_that_somebody_is_writing_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a" * 100)
    with path.open("r+b"), pytest.raises(ChangingFile, match="open for writing"):
        read_steady(path, 100)
    assert read_steady(path, 100)[0] == b"a" * 100


def test_a_write_through_a_mapping_is_noticed_though_no_time_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a" * 100)
    with path.open("r+b") as writer, mmap.mmap(writer.fileno(), 0) as mapped:
        mapped[0] = ord("b")  # from here on the system notes no further writes
        # Not every system tells.
        monkeypatch.setattr("devicekit.files._open_for_writing", lambda descriptor: False)
        with open_steady(path) as file:
            content = file.read(100, 0)
            mapped[99] = ord("b")
            with pytest.raises(ChangingFile):
                file.require_same(memoryview(content), 0)


def test_content_is_compared_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devicekit.files.READ_AT_ONCE", 7)
    path = tmp_path / "x"
    path.write_bytes(bytes(range(100)))
    with open_steady(path) as file:
        content = bytearray(file.read(90, 10))
        assert content == bytes(range(10, 100))
        file.require_same(memoryview(content), 10)
        content[-1] ^= 1
        with pytest.raises(ChangingFile):
            file.require_same(memoryview(content), 10)


def test_an_old_file_on_a_disk_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a")
    with open_steady(path) as file:
        assert file.needs_second_reading
        monkeypatch.setattr("devicekit.files.time.time", lambda: path.stat().st_ctime + 61)
        monkeypatch.setattr("devicekit.files._in_memory", lambda device: False)
        assert not file.needs_second_reading
        monkeypatch.setattr("devicekit.files._in_memory", lambda device: True)
        assert file.needs_second_reading
        monkeypatch.setattr("devicekit.files._in_memory", lambda device: False)
        # The clock was set.
        monkeypatch.setattr("devicekit.files.time.time", lambda: path.stat().st_ctime - 1000)
        assert file.needs_second_reading


def test_a_file_outside_of_all_directories_is_refused_however_links_lead_there(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root, outside):
        folder.mkdir()
        (folder / "x").write_bytes(b"abc")
    (root / "link").symlink_to(outside / "x")
    (root / "folder").symlink_to(outside)
    (root / "twice").symlink_to(root / "link")
    within = (str(root),)
    for name in ("link", "folder/x", "twice", "../outside/x"):
        with pytest.raises(UnreadableFile, match=f"is a link to {outside / 'x'}, outside of {root}"):
            read_steady(root / name, 10, within)
    (root / "inside").symlink_to(root / "x")
    (outside / "back").symlink_to(root / "x")
    for path in (root / "x", root / "inside", outside / "back"):
        assert read_steady(path, 10, within)[0] == b"abc"
    assert read_steady(root / "link", 10, (*within, str(outside)))[0] == b"abc"
    assert read_steady(root / "link", 10)[0] == b"abc"


def test_a_link_that_is_turned_while_its_file_is_opened_lets_nothing_else_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/x").write_bytes(b"abc")
    (tmp_path / "secret").write_bytes(b"def")
    link = tmp_path / "root/link"
    link.symlink_to(tmp_path / "secret")
    opened = os.open

    def turn(path: Path, flags: int) -> int:
        descriptor = opened(path, flags)
        link.unlink()
        link.symlink_to(tmp_path / "root/x")
        return descriptor

    monkeypatch.setattr(os, "open", turn)
    with pytest.raises(ChangingFile, match="was replaced while it was opened"):
        read_steady(link, 10, (str(tmp_path / "root"),))
