"""``python -m devicekit.devtools.audit.page``: writes the page of what replaces each call of a vendor's module."""

from __future__ import annotations

import sys
from pathlib import Path

from devicekit.devtools.audit.beside import MODULE, PRESENCE, SWITCHES
from devicekit.devtools.audit.table import (
    ANNOTATIONS,
    NEAR_PROPERTIES,
    PROPERTIES,
    REPLACEMENTS,
    STATISTICS,
    Replacement,
)

PAGE = Path(__file__).parents[3] / "docs" / "replacements.md"

_QUESTION = (
    "devicekit.on_accelerator(tensor), with `--unsafe-fixes`: it may be where devicekit has no backend"
)
_HEAD = """\
# What replaces torch.cuda

For each name of `torch.cuda`, and of every other vendor's module of that shape. `device` is a `devicekit.Device`:
the one that the code was given, or `devicekit.current_device()`, or `devicekit.device_for(argument)` where the
call names one. `devicekit audit --fix` writes what is marked *yes*; what is marked *asked* it writes with
`--unsafe-fixes`, for a person to check; the rest is done by hand, as the second column says. This page is written
by `python -m devicekit.devtools.audit.page`.

| torch.cuda | instead | rewritten | what behaves differently |
| --- | --- | --- | --- |
"""


def main() -> int:
    """Write the page; exit status 0."""
    PAGE.write_text(render(), encoding="utf-8")
    print(PAGE)
    return 0


def render() -> str:
    """The page, as Markdown."""
    rows = [_row(one) for one in sorted(REPLACEMENTS.values(), key=lambda one: one.name.lower())]
    parts = [
        ("An annotation", "is", {f"torch.cuda.{name}": code for name, code in ANNOTATIONS.items()}),
        ("A key of `memory_stats()`", "is the field", dict(STATISTICS)),
        ("An attribute of `get_device_properties()`", "is the field", dict(PROPERTIES)),
        ("Another, with `--unsafe-fixes`", "is nearly the field", dict(NEAR_PROPERTIES)),
    ]
    tables = [
        "\n".join(
            [
                "",
                f"| {what} | {becomes} |",
                "| --- | --- |",
                *(f"| `{a}` | `{b}` |" for a, b in names.items()),
            ]
        )
        for what, becomes, names in parts
    ]
    beside = [
        "",
        "| beside the module | instead |",
        "| --- | --- |",
        f"| the module itself, as in `torch.cuda` | {MODULE} |",
        f"| `hasattr(torch, 'cuda')` | {PRESENCE} |",
        f"| `tensor.is_cuda`, `tensor.device.type == 'cuda'` | {_QUESTION} |",
        *(f"| `{name}` | {advice} |" for name, advice in SWITCHES.items()),
    ]
    return _HEAD + "\n".join([*rows, *tables, *beside]) + "\n"


def _row(one: Replacement) -> str:
    parameters = ", ".join(
        name if default is None else f"{name}={default}" for name, default in one.parameters.items()
    )
    name = f"{one.name}({parameters})" if one.called else one.name
    instead = f"`{one.code}`" if one.code else one.advice
    rewritten = "yes" if one.certain else "asked" if one.code else "no"
    return f"| `{name}` | {instead} | {rewritten} | {one.changes} |"


if __name__ == "__main__":
    sys.exit(main())
