"""Directories for a moment: in use they are left alone, and after a kill the next one removes them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devicekit.runners.passing import passing_directory

_HOLD = """
import sys
from devicekit.runners.passing import passing_directory

with passing_directory(sys.argv[1]) as made:
    (made / "below").mkdir()
    (made / "below" / "file").write_text("x")
    print(made, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(place: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that is within a directory of its own, until its input ends."""
    command = [sys.executable, "-c", _HOLD, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_one_that_is_in_use_is_left_alone_and_one_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, theirs):
        with passing_directory(str(tmp_path)) as mine:
            assert mine != theirs
            assert (theirs / "below" / "file").read_text() == "x"
        assert not mine.exists()
        assert theirs.exists()
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        assert theirs.exists()
    with passing_directory(str(tmp_path)) as mine:
        assert [*tmp_path.iterdir()] == [mine]
    assert [*tmp_path.iterdir()] == []


def test_it_goes_when_its_user_raises(tmp_path: Path) -> None:
    def fail() -> None:
        with passing_directory(str(tmp_path)) as mine:
            (mine / "file").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [*tmp_path.iterdir()] == []


def test_what_is_not_ours_is_not_removed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("x")
    place = tmp_path / "place"
    place.mkdir()
    with passing_directory(str(place)) as mine:
        prefix = mine.name[: -len(mine.name.split("-")[-1])]
    link, plain = place / f"{prefix}link", place / f"{prefix}file"
    link.symlink_to(elsewhere, target_is_directory=True)
    plain.write_text("x")
    os.mkfifo(place / f"{prefix}fifo")
    with passing_directory(str(place)):
        pass
    assert len([*place.iterdir()]) == 3
    assert (elsewhere / "file").read_text() == "x"


def test_a_place_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), passing_directory(str(tmp_path / "none")):
        pass
