"""A timeline as a PNG picture. Needs Pillow: ``pip install 'devicekit[plot]'``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw, ImageFont

from devicekit.observe.figure import HEIGHT, WIDTH, Area, Label, Line, Point, draw
from devicekit.observe.palette import DARK, LIGHT, SHADE
from devicekit.observe.timeline import Timeline

_SCALE = 2  # pixels for each unit of the layout
_LISTED = 12  # marks spelt out below the picture
_ROW = 18
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}
_DASH, _PAUSE = 4.0, 3.0


def write_png(timeline: Timeline, path: str | Path, *, dark: bool = False) -> None:
    """Write the picture, with its first marks spelt out below it."""
    figure = draw(timeline)
    palette = DARK if dark else LIGHT
    listed = list(figure.legend[:_LISTED])
    if len(figure.legend) > _LISTED:
        listed.append(f"and {len(figure.legend) - _LISTED} more")
    height = HEIGHT + _ROW * (len(listed) + 2)
    image = Image.new("RGB", (WIDTH * _SCALE, height * _SCALE), palette["background"])
    painter = ImageDraw.Draw(image)
    for shape in figure.shapes:
        if isinstance(shape, Area):
            painter.polygon(_scaled(shape.points), fill=_pale(palette, shape.role))
        elif isinstance(shape, Line):
            _paint_line(painter, shape, palette)
        else:
            _paint_label(painter, shape, palette)
    _paint_label(painter, Label(20, 16, figure.title, size=13), palette)
    for number, text in enumerate(listed):
        _paint_label(painter, Label(20, HEIGHT + _ROW * (number + 1), text), palette)
    image.save(path, format="PNG")


def _paint_label(painter: ImageDraw.ImageDraw, label: Label, palette: Mapping[str, str]) -> None:
    font = ImageFont.load_default(size=label.size * _SCALE)
    place = (label.x * _SCALE, label.y * _SCALE)
    painter.text(place, label.text, fill=palette[label.role], font=font, anchor=_ANCHORS[label.anchor])


def _paint_line(painter: ImageDraw.ImageDraw, line: Line, palette: Mapping[str, str]) -> None:
    width = round(line.width * _SCALE)
    if not line.dashed:
        painter.line(_scaled(line.points), fill=palette[line.role], width=width, joint="curve")
        return
    (x, top), (_, bottom) = line.points  # marks are upright
    while top < bottom:
        dash = ((x, top), (x, min(top + _DASH, bottom)))
        painter.line(_scaled(dash), fill=palette[line.role], width=width)
        top += _DASH + _PAUSE


def _scaled(points: tuple[Point, ...]) -> list[Point]:
    return [(x * _SCALE, y * _SCALE) for x, y in points]


def _pale(palette: Mapping[str, str], role: str) -> tuple[int, ...]:
    colour, ground = ImageColor.getrgb(palette[role]), ImageColor.getrgb(palette["background"])
    return tuple(round(SHADE * one + (1 - SHADE) * other) for one, other in zip(colour, ground, strict=True))
