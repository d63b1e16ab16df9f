"""``python -m tools.backends``: writes a page for each backend, from its manifest, its quirks and the records.

What is said of hardware is what a record in docs/results says; a backend without one says so.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Sequence

from devicekit.contract import HOOKS
from devicekit.torchlike import Quirk
from tools.reference import CHECKOUT, Support, read_support
from tools.tested import PAGE, Record, records

FOLDER = CHECKOUT / "docs" / "backends"
_NEVER = (
    "On no hardware yet. The plugin is tested over a double that is made from the vendor's published interface.\n"
    "That shows its calls and its reading of answers to be right as far as the interface says, and nothing of a\n"
    "device."
)
_HEADS = ("device", "driver", "date", "Python", "torch", "parts", "conformance", "record")


def main() -> int:
    """Write every page; exit status 0."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / f"{name}.md").write_text(text, encoding="utf-8")
        print(FOLDER / f"{name}.md")
    return 0


def pages() -> dict[str, str]:
    """The pages, by the backend's name."""
    tested = records(PAGE.parent)
    return {
        one.manifest.name: render(one, _described(one), tested) for one in read_support(CHECKOUT / "plugins")
    }


def render(support: Support, described: tuple[str, Sequence[Quirk]], tested: Sequence[Record]) -> str:
    """One page, as Markdown.

    Args:
        described: what the plugin's first line says it is, and its quirks.
        tested: every record; those of other backends are left out.
    """
    manifest, (sentence, quirks) = support.manifest, described
    name = manifest.name
    lines = [
        f"# {name}",
        "",
        sentence,
        "",
        "```bash",
        f"pip install . ./plugins/{name}",
        f"devicekit info --device {name}",
        "```",
        "",
        *_facts(support),
        "",
        "## Tested on",
        "",
        *_tested(name, tested, host=manifest.host),
        "",
        "## Hooks",
        "",
        *_hooks(support),
        "",
        "## Quirks",
        "",
        *_quirks(quirks),
        "",
        "This page is written by `python -m tools.backends`.",
    ]
    return "\n".join(lines) + "\n"


def _facts(support: Support) -> list[str]:
    manifest = support.manifest
    needs = [f"torch {manifest.torch}" if manifest.torch else "", *map(str, manifest.requires)]
    facts = {
        "torch's device type": f"`{manifest.device_type}`",
        "needs": ", ".join(f"`{one}`" for one in needs if one),
        "collectives": f"`{manifest.collective_backend}`" if manifest.collective_backend else "",
        "variable that hides devices": f"`{manifest.visible_devices_variable}`"
        if manifest.visible_devices_variable
        else "",
        "its hardware is there if": ", ".join(f"`{one}` exists" for one in manifest.hardware),
        "claims": ", ".join(f"`{one}`" for one in sorted(manifest.capabilities)),
        "claims where its software has them": ", ".join(f"`{one}`" for one in sorted(manifest.optional)),
    }
    return ["| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in facts.items() if value)]


def _tested(name: str, tested: Sequence[Record], *, host: bool) -> list[str]:
    mine = [one for one in tested if one.backend == name and not one.rehearsal]
    if mine:
        lines = [f"| {' | '.join(_HEADS)} |", f"|{'---|' * len(_HEADS)}"]
        for one in mine:
            cells = [*one.cells[1:6], *one.cells[7:9], f"[{one.name}](../results/{one.name}.md)"]
            lines.append(f"| {' | '.join(cells)} |")
        return lines
    if host:
        return ["Every test of devicekit runs on the host's processor, in CI on Python 3.11 and torch 2.13."]
    return [
        _NEVER,
        "",
        f'With such a device at hand, `make device DEVICE_ARGS="--name {name}-one"` adds a record.',
    ]


def _hooks(support: Support) -> list[str]:
    counts = Counter(support.mark(hook) for hook in HOOKS)
    absent = [hook for hook in HOOKS if support.mark(hook) == "no"]
    sums = ", ".join(f"{counts[word]} {text}" for word, text in (
        ("yes", "are the vendor's own"), ("emulated", "are done without the vendor's help"),
        ("no-op", "are rightly nothing"), ("no", "are absent")) if counts[word])  # fmt: skip
    lines = [f"Of {len(HOOKS)} hooks {sums}; [the table](../hooks.md#support) has them side by side."]
    if absent:
        named = ", ".join(f"[`{hook}`](../hooks.md#{hook})" for hook in absent)
        lines += ["", f"Absent: {named}."]
    return lines


def _quirks(quirks: Sequence[Quirk]) -> list[str]:
    if not quirks:
        return ["None is known."]
    heading = "Traps of the vendor's versions. `devicekit info` lists those that apply to what is installed."
    rows = [f"| `{one.name}` | {_versions(one)} | {one.sentence} | [source]({one.link}) |" for one in quirks]
    return [heading, "", "| name | versions | what happens, and what is done | |", "|---|---|---|---|", *rows]


def _versions(quirk: Quirk) -> str:
    return f"`{quirk.versions}`" if quirk.versions else "all"


def _described(support: Support) -> tuple[str, Sequence[Quirk]]:
    module = importlib.import_module(f"devicekit_{support.manifest.name}.backend")
    vendor = getattr(module, "VENDOR", None)
    sentence = (module.__doc__ or "").strip().split("\n")[0]
    return sentence, () if vendor is None else vendor.quirks


if __name__ == "__main__":
    sys.exit(main())
