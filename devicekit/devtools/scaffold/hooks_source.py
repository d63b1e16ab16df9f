"""Writes the Python source of a backend with every hook of the contract, each with its types and its promise."""

from __future__ import annotations

import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping

from devicekit.contract.errors import ConfigurationError
from devicekit.contract.hooks import HOOKS
from devicekit.contract.spec import HookKind, HookSpec

# Where the names in the hooks' annotations come from.
_HOMES: Mapping[str, tuple[str, ...]] = {
    "collections.abc": ("Mapping", "Sequence"),
    "contextlib": ("AbstractContextManager",),
    "devicekit.contract.handles": ("DeviceGraph", "Event", "MemoryPool", "Stream"),
    "devicekit.contract.records": (
        "DeviceProperties",
        "ErrorKind",
        "HostMemoryStats",
        "MemoryInfo",
        "MemoryStats",
        "ProcessMemory",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_BUILT_IN = frozenset({"int", "bool", "str", "float", "object", "None", "BaseException", "torch"})
_WITHOUT = {
    HookKind.REQUIRED: "the registry refuses the plugin",
    HookKind.ORDERING: "whoever needs it gets UnsupportedHook",
    HookKind.RELEASING: "nothing happens, and the result says so",
    HookKind.OBSERVING: "the value is unknown, None",
}
_WIDTH = 100

_HEAD = '''"""The hooks of {title} devices.

Every body answers from devicekit's simulated accelerator. Replace them one by one; delete what the vendor lacks.
"""

from __future__ import annotations

{imports}


class Backend:
    """One object for the whole process; devices are told apart by their index."""

    def __init__(self) -> None:
        self._simulated = SimBackend()
        if not is_enabled():  # a process has one simulated machine
            enable(SimConfig(capacity=16 * GIB, fill_uninitialized=False))
'''


def backend_source(title: str) -> str:
    """The text of ``backend.py``.

    Raises:
        ConfigurationError: an annotation of the contract has a name of unknown origin.
    """
    lines = [_HEAD.format(title=title, imports="\n".join(_imports()))]
    group = ""
    for spec in HOOKS.values():
        if spec.group != group:
            group = spec.group
            lines.append(f"    # -- {group} {'-' * (_WIDTH - 9 - len(group))}\n")
        lines.append(_method(spec))
    return "\n".join(lines)


def _method(spec: HookSpec) -> str:
    declaration = spec.declaration.replace(f"{spec.name}(", f"{spec.name}(self, ", 1).replace(
        "(self, )", "(self)"
    )
    call = f"self._simulated.{spec.name}({', '.join(spec.parameters)})"
    return "\n".join(
        [
            f"    # Without it: {_WITHOUT[spec.kind]}.",
            "    @hookimpl",
            f"    def {declaration}:",
            textwrap.indent(_docstring(spec.doc), " " * 8),
            f"        {call}" if spec.returns == "None" else f"        return {call}",
            "",
        ]
    )


def _docstring(text: str) -> str:
    return f'"""{text}\n"""' if "\n" in text else f'"""{text}"""'


def _imports() -> Iterator[str]:
    """Import lines, sorted as a linter wants them."""
    wanted: dict[str, set[str]] = defaultdict(set)
    uses_torch = False
    for spec in HOOKS.values():
        annotations = spec.declaration.replace(spec.name, "", 1)
        annotations = re.sub(r"\w+:", "", annotations)
        for name in set(re.findall(r"(?<![.\w])[A-Za-z]\w*", annotations)):
            if name in _HOME_OF:
                wanted[_HOME_OF[name]].add(name)
            elif name not in _BUILT_IN:
                raise ConfigurationError(
                    f"{spec.declaration} of the contract names {name}, whose origin is unknown."
                )
            uses_torch |= name == "torch"
    standard = [module for module in wanted if not module.startswith("devicekit")]
    yield from (_import(module, wanted[module]) for module in sorted(standard))
    if uses_torch:
        yield "\nimport torch"
    yield ""
    yield "from devicekit import hookimpl"
    yield from (_import(module, wanted[module]) for module in sorted(wanted.keys() - set(standard)))
    yield "from devicekit.testing import GIB, SimConfig, enable, is_enabled"
    yield "from devicekit.testing.sim_backend import SimBackend"


def _import(module: str, names: set[str]) -> str:
    line = f"from {module} import {', '.join(sorted(names))}"
    if len(line) <= 88:
        return line
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in sorted(names)) + ")"
