"""The picture of a timeline: one HTML file that needs nothing else, and a PNG of the same shapes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

from devicekit.observe import Mark, MarkKind, Sample, Timeline, as_html, write_html
from devicekit.observe.figure import Area, Label, Line, draw
from devicekit.observe.palette import DARK, LIGHT
from devicekit.observe.png import write_png

GIB = 1 << 30


@pytest.fixture
def timeline() -> Timeline:
    sizes = [(0, None), (1, 2 * GIB), (2, 6 * GIB), (3, 3 * GIB)]
    return Timeline(
        "npu:<1>",
        samples=[
            Sample(float(at), size and size // 2, size, None if size is None else 64 * GIB - size, 64 * GIB)
            for at, size in sizes
        ],
        marks=[
            Mark(2.5, MarkKind.RELEASE, "continue", 3 * GIB, 0.004),
            Mark(2.51, MarkKind.NOTE, "weights & biases"),
        ],
    )


def test_the_page_needs_nothing_from_elsewhere_and_escapes_what_it_shows(timeline: Timeline) -> None:
    page = as_html(timeline)
    for outside in ("http", "src=", "href=", "@import", "url(", "<script"):
        assert outside not in page
    assert "Memory of npu:&lt;1&gt; over time" in page
    assert "1. 2.500 s  release: continue, 3 GiB handed back, 4.00 ms" in page
    assert "weights &amp; biases" in page
    assert "prefers-color-scheme: dark" in page


def test_the_drawing_is_well_formed_and_every_colour_is_defined(timeline: Timeline, tmp_path: Path) -> None:
    path = tmp_path / "memory.html"
    write_html(timeline, path)
    page = path.read_text(encoding="utf-8")
    drawing = ET.fromstring(page[page.index("<svg") : page.index("</svg>") + len("</svg>")])
    roles = {element.get("class") for element in drawing}
    assert roles <= set(LIGHT) == set(DARK)
    assert {"allocated", "reserved", "free", "release", "note"} <= roles


def test_a_value_holds_until_the_next_and_unknown_ones_are_not_drawn(timeline: Timeline) -> None:
    (reserved,) = [
        shape
        for shape in draw(timeline).shapes
        if isinstance(shape, Line) and shape.role == "reserved" and shape.points[0][1] > 60
    ]
    xs, ys = zip(*reserved.points, strict=True)
    assert len(set(xs)) == 3  # at 1, 2 and 3 seconds
    assert list(xs) == sorted(xs)
    assert ys[0] == ys[1]  # held
    assert min(ys) == ys[2]
    assert xs[0] > min(
        x for shape in draw(timeline).shapes if isinstance(shape, Line) for x, _ in shape.points
    )


def test_the_scale_is_in_round_binary_units(timeline: Timeline) -> None:
    texts = {shape.text for shape in draw(timeline).shapes if isinstance(shape, Label)}
    assert {"0 B", "2 GiB", "4 GiB", "6 GiB", "20 GiB", "60 GiB"} <= texts


def test_marks_close_together_share_a_label(timeline: Timeline) -> None:
    figure = draw(timeline)
    assert "1-2" in [shape.text for shape in figure.shapes if isinstance(shape, Label)]
    assert [line.split(".")[0] for line in figure.legend] == ["1", "2"]


def test_a_backend_that_does_not_count_is_said_to_be_unknown() -> None:
    figure = draw(Timeline("cpu:0", samples=[Sample(0.0, None, None, 5), Sample(1.0, None, None, 5)]))
    texts = [shape.text for shape in figure.shapes if isinstance(shape, Label)]
    assert "allocated: unknown" in texts
    assert not any(isinstance(shape, Area) for shape in figure.shapes)


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_anything_can_be_drawn_too(count: int) -> None:
    timeline = Timeline("sim:0", samples=[Sample(7.0, 0, 0, 0)] * count)
    assert "<svg" in as_html(timeline)


def test_many_samples_make_a_small_picture_that_keeps_the_extremes() -> None:
    samples = [Sample(at / 1000, 10, 50 if at == 77_777 else 20, 5) for at in range(100_000)]
    figure = draw(Timeline("sim:0", samples=samples))
    (line,) = [shape for shape in figure.shapes if isinstance(shape, Line) and shape.role == "reserved"][:1]
    assert len(line.points) < 6000
    assert len({round(y, 3) for _, y in line.points}) == 2


@pytest.mark.parametrize(("dark", "palette"), [(False, LIGHT), (True, DARK)])
def test_the_png_shows_the_same_shapes(
    timeline: Timeline, tmp_path: Path, dark: bool, palette: dict[str, str]
) -> None:
    path = tmp_path / "memory.png"
    write_png(timeline, path, dark=dark)
    with Image.open(path) as image:
        assert image.format == "PNG"
        found = {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in image.getcolors(1 << 20) or ()}  # type: ignore[misc]  # Pillow's stubs say float
        assert image.getpixel((0, 0)) == tuple(bytes.fromhex(palette["background"][1:]))
    assert {palette[role] for role in ("allocated", "reserved", "free", "release", "note")} <= found
