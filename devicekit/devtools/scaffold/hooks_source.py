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
        "AllocatorSetting",
        "DeviceProperties",
        "ErrorKind",
        "HostMemoryStats",
        "MemoryInfo",
        "MemoryStats",
        "ProcessMemory",
        "Telemetry",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_BUILT_IN = frozenset(
    {"int", "bool", "str", "float", "object", "None", "BaseException", "frozenset", "torch", "tuple"}
)
NOT_SIMULATED = frozenset({"export_event", "import_event"})  # it lives in one process
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


_PLAIN = '''"""The hooks of {title} devices.

Three hooks are required and stand first. The others are listed below, each with its signature and what a device
answers without it: copy what the vendor has into the class, and leave out the rest.
"""

from __future__ import annotations

from devicekit import hookimpl


class Backend:
    """One object for the whole process; devices are told apart by their index."""

'''
_BODIES = {
    "is_available": "return False",
    "device_count": "return 0",
    "synchronize": "raise NotImplementedError",
}


def plain_source(title: str) -> str:
    """The text of a ``backend.py`` with the required hooks only, and the others as a list to copy from."""
    lines = [_PLAIN.format(title=title)]
    lines += [_method(spec, _BODIES[spec.name]) for spec in HOOKS.values() if spec.kind is HookKind.REQUIRED]
    lines.append("\n# The other hooks of the contract.\n#")
    for spec in HOOKS.values():
        if spec.kind is not HookKind.REQUIRED:
            text = f"{_declared(spec)}\n" + textwrap.indent(spec.doc, "    ")
            said = f"Without it: {_WITHOUT[spec.kind]}."
            lines.append("\n".join(f"# {line}".rstrip() for line in (*text.splitlines(), f"    {said}", "")))
    return "\n".join(lines).rstrip("#\n ") + "\n"


def backend_source(title: str) -> str:
    """The text of a ``backend.py`` that answers every hook from the simulated accelerator.

    Raises:
        ConfigurationError: an annotation of the contract has a name of unknown origin.
    """
    lines = [_HEAD.format(title=title, imports="\n".join(_imports()))]
    group = ""
    for spec in HOOKS.values():
        if spec.name in NOT_SIMULATED:
            continue
        if spec.group != group:
            group = spec.group
            lines.append(f"    # -- {group} {'-' * (_WIDTH - 9 - len(group))}\n")
        call = f"self._simulated.{spec.name}({', '.join(spec.parameters)})"
        lines.append(_method(spec, call if spec.returns == "None" else f"return {call}"))
    return "\n".join(lines)


def _declared(spec: HookSpec) -> str:
    inner = spec.declaration.replace(f"{spec.name}(", f"{spec.name}(self, ", 1).replace("(self, )", "(self)")
    return f"def {inner}:"


def _method(spec: HookSpec, body: str) -> str:
    return "\n".join(
        [
            f"    # Without it: {_WITHOUT[spec.kind]}.",
            "    @hookimpl",
            f"    {_declared(spec)}",
            textwrap.indent(_docstring(spec.doc), " " * 8),
            f"        {body}",
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
