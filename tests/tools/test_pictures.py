"""Pictures show what a terminal shows, load nothing, and tell nothing of the machine."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tools.pictures import CHECKOUT, COMMANDS, FOLDER, WIDTHS, as_svg, clean, settled, terminal


def text_of(svg: str) -> str:
    words = [node.text or "" for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")]
    return "\n".join(words).replace("\xa0", " ")


@pytest.mark.parametrize(
    ("printed", "left"),
    [
        ("one\r\ntwo\r\n", "one\ntwo\n"),
        ("[1/2]\r\x1b[2K[2/2]\r\ndone\r\n", "[2/2]\ndone\n"),
        ("bar\x1b[1A\r\x1b[2Kline\r\nbar\r\n", "line\nbar\n"),
        ("kept\r\nbar 1\r\n\x1b[1A\x1b[2Kbar 2\r\n", "kept\nbar 2\n"),
        ("\x1b[?25l\x1b[2mdim\x1b[0m\x1b[?25h\n", "\x1b[2mdim\x1b[0m\n"),
    ],
)
def test_what_was_written_over_is_gone(printed: str, left: str) -> None:
    assert settled(printed) == left


def test_a_picture_has_the_text_and_loads_nothing() -> None:
    svg = as_svg("\x1b[32mgreen\x1b[0m & plain\n", "devicekit list", 80)
    assert "green" in text_of(svg)
    assert "& plain" in text_of(svg)
    assert not re.search(r"url\([\"']?http|@font-face|<image|href=\"http", svg)


def test_a_command_is_captured_at_the_width_of_its_terminal(tmp_path: Path) -> None:
    printed = terminal(("list",), tmp_path, 80)
    assert "devicekit-cpu" in printed
    assert "\r" not in printed


def test_folders_are_not_told(tmp_path: Path) -> None:
    assert (
        clean(f"in {tmp_path}/out of {CHECKOUT}/devicekit", tmp_path)
        == "in ~/work/out of ~/devicekit/devicekit"
    )


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_capture_is_there_and_fits_its_width(name: str, width: int) -> None:
    svg = (FOLDER / f"{name}-{width}.svg").read_text()
    assert not re.search(r"@font-face|url\([\"']?http", svg)
    assert str(CHECKOUT) not in svg
    assert len(text_of(svg)) > 100


def test_every_picture_is_shown_by_a_page() -> None:
    pages = "".join(path.read_text() for path in (CHECKOUT / "docs").rglob("*.md"))
    assert [one.name for one in FOLDER.iterdir() if f"pictures/{one.name}" not in pages] == []
