"""``python -m tools.reference``: writes the page about hooks, and who supports them, from the code.

The table of support is read from the plugins of a checkout: from their manifests, and from their classes without
constructing one, so that no vendor software is needed. What a version of that software adds or lacks is not in it.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from devicekit.contract import (
    CAPABILITIES,
    CONTRACT_VERSION,
    HOOKS,
    HookKind,
    HookSpec,
    Manifest,
    handles,
    hooks,
)
from devicekit.contract.handles import DeviceGraph, Event, MemoryPool, Stream, TimingEvent
from devicekit.contract.manifest import FILE_NAME
from devicekit.registry.validation import implemented_hooks
from devicekit_conformance.frozen_contract import profile_of

CHECKOUT = Path(__file__).parents[1]

_WHEN_MISSING = {
    HookKind.REQUIRED: "the plugin is refused when it is loaded, and the hook is named",
    HookKind.ORDERING: "`UnsupportedHook` is raised; `device.supports({name!r})` asks first",
    HookKind.RELEASING: "nothing happens, and the result is false and says why",
    HookKind.OBSERVING: "the value is unknown: {unknown}",
}
_RECORDS = ("MemoryStats", "MemoryInfo", "HostMemoryStats", "DeviceProperties", "Telemetry")


@dataclass(frozen=True, slots=True)
class Support:
    """What one plugin of the checkout offers."""

    manifest: Manifest
    hooks: frozenset[str]

    def mark(self, hook: str) -> str:
        """One word for the table."""
        if hook not in self.hooks:
            return "no"
        if hook in self.manifest.noop:
            return "no-op"
        return "emulated" if hook in self.manifest.emulated else "yes"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; exit status 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.reference", description=__doc__)
    parser.add_argument("--output", type=Path, default=CHECKOUT / "docs" / "hooks.md")
    parser.add_argument("--plugins", type=Path, default=CHECKOUT / "plugins")
    options = parser.parse_args(arguments)
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(render(read_support(options.plugins)), encoding="utf-8")
    print(options.output)
    return 0


def read_support(plugins: Path) -> list[Support]:
    """Every plugin under a folder of distributions, in order of name."""
    found: list[Support] = []
    for path in sorted(plugins.glob(f"*/*/{FILE_NAME}")):
        package = path.parent
        sys.path.insert(0, str(package.parent))
        try:
            backend: object = importlib.import_module(package.name).Backend
        finally:
            sys.path.remove(str(package.parent))
        found.append(Support(Manifest.read(path), implemented_hooks(backend)))
    return found


def render(support: Sequence[Support]) -> str:
    """The page, as Markdown."""
    lines = [
        "# Hooks",
        "",
        f"The hooks of device contract {CONTRACT_VERSION}. This page is written by",
        "`python -m tools.reference`; edit the code and write it again.",
        "",
        "Callers pass every argument by position.",
        "",
        *_for_all_hooks(),
        *_support_table(support),
    ]
    for group, specs in groupby(HOOKS.values(), key=lambda spec: spec.group):
        lines += [f"## {group}", ""]
        for spec in specs:
            lines += _section(spec)
    return "\n".join([*lines, *_handed_out(), *_capabilities()]).rstrip() + "\n"


def _for_all_hooks() -> list[str]:
    """What the module of the hooks says, after its first sentence."""
    _, _, rest = inspect.cleandoc(hooks.__doc__ or "").partition("\n\n")
    return ["## What holds for every hook", "", rest, ""]


def _handed_out() -> list[str]:
    """The protocols of what hooks return, method by method."""
    lines = ["## What hooks hand out", "", inspect.cleandoc(handles.__doc__ or ""), ""]
    for protocol in (Stream, Event, TimingEvent, DeviceGraph, MemoryPool):
        lines += [f"### {protocol.__name__}", "", inspect.cleandoc(protocol.__doc__ or ""), ""]
        for name, method in vars(protocol).items():
            if inspect.isfunction(method) and not name.startswith("_"):
                signature = str(inspect.signature(method)).replace("(self, ", "(").replace("(self)", "()")
                said = textwrap.indent(inspect.getdoc(method) or "", "  ").strip()
                lines += [f"- `{name}{signature.replace(chr(39), '')}`: {said}"]
        lines += [""]
    return lines


def _support_table(support: Sequence[Support]) -> list[str]:
    heads = ["hook", "kind", *(one.manifest.name for one in support)]
    rows = [
        [f"[`{spec.name}`](#{spec.name})", spec.kind.value, *(one.mark(spec.name) for one in support)]
        for spec in HOOKS.values()
    ]
    return [
        "## Support",
        "",
        "*yes*: the vendor's own; *emulated*: done without the vendor's help; *no-op*: doing nothing is right;",
        "*no*: absent. A plugin may take a hook back where the installed vendor software lacks it.",
        "",
        *(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)),
        "",
    ]


def _section(spec: HookSpec) -> list[str]:
    unknown = f"a `{spec.returns}` full of `None`" if spec.returns in _RECORDS else "`None`"
    missing = _WHEN_MISSING[spec.kind].format(name=spec.name, unknown=unknown)
    return [
        f"### {spec.name}",
        "",
        "```python",
        spec.declaration,
        "```",
        "",
        f"- kind: {spec.kind.value}",
        f"- since: {spec.since}",
        *(f"- argument `{name}`: since {version}" for name, version in spec.added.items()),
        f"- when missing: {missing}",
        f"- judged in: profile `{profile_of(spec.name)}` of the conformance suite",
        "",
        spec.doc,
        "",
    ]


def _capabilities() -> list[str]:
    rows = [
        f"| `{one.name}` | {one.sentence} | {', '.join(f'`{hook}`' for hook in one.hooks)} |"
        for one in CAPABILITIES.values()
    ]
    heading = "What a manifest may claim. A claim without its hooks is refused when the plugin is loaded."
    return [
        "## Capabilities",
        "",
        heading,
        "",
        "| capability | meaning | hooks |",
        "| --- | --- | --- |",
        *rows,
    ]


if __name__ == "__main__":
    sys.exit(main())
