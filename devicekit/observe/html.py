"""A timeline as one HTML file that opens by itself: inline SVG, no scripts, no assets, light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from devicekit.observe.figure import HEIGHT, WIDTH, Area, Figure, Label, Line, Shape, draw
from devicekit.observe.palette import DARK, LIGHT, SHADE
from devicekit.observe.timeline import Timeline

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
body {{ margin: 2rem auto; max-width: {width}px; padding: 0 1rem; background: var(--background);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.25rem; font-weight: 600; }}
svg {{ width: 100%; height: auto; font-family: system-ui, sans-serif; }}
ol {{ list-style: none; padding: 0; font-variant-numeric: tabular-nums; }}
{rules}
</style>
</head>
<body>
<h1>{title}</h1>
{svg}
<ol>
{legend}
</ol>
</body>
</html>
"""


def write_html(timeline: Timeline, path: str | Path) -> None:
    """Write the picture and the list of marks."""
    Path(path).write_text(as_html(timeline), encoding="utf-8")


def as_html(timeline: Timeline) -> str:
    """The page that `write_html` writes."""
    figure = draw(timeline)
    return _PAGE.format(
        title=escape(figure.title),
        width=WIDTH,
        light=_variables(LIGHT),
        dark=_variables(DARK),
        rules="\n".join(_rule(role) for role in LIGHT if role != "background"),
        svg=_svg(figure),
        legend="\n".join(f"<li>{escape(line)}</li>" for line in figure.legend),
    )


def _variables(palette: Mapping[str, str]) -> str:
    return " ".join(f"--{role}: {colour};" for role, colour in palette.items())


def _rule(role: str) -> str:
    colour = f"var(--{role})"
    # Mixed rather than transparent: areas lie on each other.
    pale = f"color-mix(in srgb, {colour} {SHADE:.0%}, var(--background))"
    return (
        f".{role} {{ stroke: {colour}; fill: none; }} "
        f"polygon.{role} {{ stroke: none; fill: {pale}; }} "
        f"text.{role} {{ stroke: none; fill: {colour}; }}"
    )


def _svg(figure: Figure) -> str:
    shapes = "\n".join(map(_element, figure.shapes))
    title = escape(figure.title)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">\n{shapes}\n</svg>'


def _element(shape: Shape) -> str:
    if isinstance(shape, Label):
        return (
            f'<text class="{shape.role}" x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size:g}" '
            f'text-anchor="{shape.anchor}">{escape(shape.text)}</text>'
        )
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
    if isinstance(shape, Area):
        return f'<polygon class="{shape.role}" points="{points}"/>'
    return _path(shape, points)


def _path(line: Line, points: str) -> str:
    dashes = ' stroke-dasharray="4 3"' if line.dashed else ""
    tip = f"<title>{escape(line.tip)}</title>" if line.tip else ""
    style = f'class="{line.role}" stroke-width="{line.width:g}"{dashes}'
    return f'<polyline {style} points="{points}">{tip}</polyline>'
