"""The folder of a new backend: manifest, hooks, conformance test, waivers, continuous integration, README."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template

from devicekit import __version__
from devicekit.contract.capabilities import CAPABILITIES
from devicekit.contract.errors import ConfigurationError
from devicekit.contract.hooks import HOOKS
from devicekit.contract.text import shown
from devicekit.contract.versions import CONTRACT_VERSION
from devicekit.devtools.scaffold.hooks_source import NOT_SIMULATED, backend_source, plain_source
from devicekit.devtools.scaffold.trying import Seen, seen
from devicekit.registry.selection import FIRST_PARTY

_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "conformance-waivers.toml": "conformance-waivers.toml",
    "tests/test_conformance.py": "test_conformance.py",
    ".github/workflows/conformance.yml": "conformance.yml",
    "devicekit_{name}/__init__.py": "__init__.py",
    "devicekit_{name}/backend.toml": "backend.toml",
}


# What the simulated accelerator claims. Written down, because writing files must not need it: on a machine whose
# vendor has extended torch already there is no room for it.
_SIMULATED = frozenset(CAPABILITIES) - {"event_sharing", "lazy_execution", "unified_memory"}
# What an adapter over a module can show by its hooks, where nothing was tried.
_OVER = frozenset(CAPABILITIES) - {"async_copies", "unified_memory", "peak_memory", "lazy_execution"}
# What users may write, and what index and installer take as the end of a distribution's name, one for each.
_NAME = re.compile(r"(?=.{1,100}\Z)[a-z](?:_?[a-z0-9])*")
# Distributions of devicekit's own project: another one of the name would take their place.
_TAKEN = frozenset({*FIRST_PARTY, "conformance"})
_MODULE = re.compile(r"torch\.([a-z_][a-z0-9_]*)")


class Start(enum.Enum):
    """What a new backend stands on."""

    SIMULATED = "simulated"  # no hardware yet: every hook answers from the simulated accelerator
    OVER_MODULE = "over a torch module"  # the vendor's module looks like torch.cuda, at least in part
    PLAIN = "plain"  # anything else: hooks to be written


def new_backend(
    name: str,
    folder: Path,
    *,
    start: Start = Start.SIMULATED,
    over: str | None = None,
    tried: str | None = None,
) -> tuple[Path, ...]:
    """Write a new backend's package into ``folder``, which is made.

    It installs and the registry accepts it at once. Nothing of torch is imported in this process.

    Args:
        name: what users will write, as in ``get_device("acme:1")``: a lower-case identifier that no distribution
            of devicekit's own has.
        start: what its hooks stand on.
        over: the vendor's module, as in ``"torch.acme"``; it implies ``Start.OVER_MODULE``.
        tried: the package that brings the module. The device of this machine is tried in another process, and what
            was seen is what the package claims.

    Returns:
        The files written.

    Raises:
        ConfigurationError: ``name`` or ``over`` is no such name, ``folder`` exists and is not empty, or the device
            cannot be tried.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigurationError(
            "A backend's name must be a lower-case identifier such as 'acme' or 'acme_two', of at most 100 "
            f"characters, not {shown(name)}."
        )
    if name in _TAKEN:
        raise ConfigurationError(
            f"devicekit-{name} is a distribution of devicekit's own, and installing yours would remove it. Take "
            f"another name, as in 'acme_{name}'."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} exists and is not an empty folder.")
    start = start if over is None else Start.OVER_MODULE
    module = name if over is None else _module(over)
    if start is Start.OVER_MODULE and over is None:
        raise ConfigurationError("To start over a module, name it: over='torch.acme'.")
    if tried is not None and over is None:
        raise ConfigurationError("A package to try needs the module that it brings: over='torch.NAME'.")
    effects = None if tried is None else seen(module, tried)
    values = {**_values(name, start, module), **_claims(start, effects), **_trial(module, tried, effects)}
    texts = {path.format(name=name): _render(template, values) for path, template in _FILES.items()}
    if start is Start.OVER_MODULE:
        texts[f"devicekit_{name}/backend.py"] = _render("over_module.py", values)
    elif start is Start.PLAIN:
        texts[f"devicekit_{name}/backend.py"] = plain_source(values["title"])
    else:
        texts[f"devicekit_{name}/backend.py"] = backend_source(values["title"])
        texts[f"devicekit_{name}/conformance.toml"] = _render("conformance.toml", values)
    texts[f"devicekit_{name}/py.typed"] = ""
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return tuple(folder / path for path in sorted(texts))


def _module(over: str) -> str:
    found = _MODULE.fullmatch(over)
    if found is None:
        raise ConfigurationError(
            f"The vendor's module is written torch.NAME, as in 'torch.acme', not {over!r}."
        )
    return found[1]


def _values(name: str, start: Start, module: str) -> Mapping[str, str]:
    major, minor, *_ = __version__.split(".")
    simulated = start is Start.SIMULATED
    return {
        "name": name,
        "title": name.capitalize(),
        "device_type": "sim" if simulated else module,
        "module": module,
        "label": module.upper(),
        "start": _STARTS[start].format(hooks=len(HOOKS) - len(NOT_SIMULATED), module=module),
        "automatic": "false" if simulated else "true",
        # The contract's range is what binds: every devicekit of its major version serves it.
        "devicekit": f">={major}.{minor},<{int(major) + 1}",
        "contract": f">={CONTRACT_VERSION},<{CONTRACT_VERSION.major + 1}",
        "contract_version": str(CONTRACT_VERSION),
        "noop": json.dumps(["collect_ipc", "submit_work"] if simulated else []),
    }


def _claims(start: Start, effects: Seen | None) -> Mapping[str, str]:
    """What the manifest claims: what is known, or what the hooks that are present could mean."""
    known = _SIMULATED if start is Start.SIMULATED else frozenset() if effects is None else effects.claims
    could = _OVER if start is Start.OVER_MODULE and effects is None else frozenset()
    return {
        "capabilities": json.dumps(sorted(known)),
        "optional": json.dumps(sorted(could)),
        "claims_note": _BY_HOOKS if could else "",
    }


def _trial(module: str, package: str | None, effects: Seen | None) -> Mapping[str, str]:
    """What `over_module.py` imports, and what it knows of the device."""
    if effects is None:
        return {
            "vendor_import": f"# import torch_{module}  # if torch does not load the vendor's package by itself",
            "findings_note": _UNTRIED.format(module=module),
            "findings": "Findings()",
        }
    return {
        "vendor_import": f"import {package}  # noqa: F401  # it brings torch.{module}",
        "findings_note": _TRIED,
        "findings": effects.source,
    }


_BY_HOOKS = (
    "# These hold where their hooks are present, and nothing of them was seen yet: with the device at hand, let\n"
    "# `devicekit new-backend --try PACKAGE` write what it does, or take out what the suite says is not so.\n"
)
_UNTRIED = (
    "# What torch itself does for the device, where its module does not: torch.accelerator, torch.Stream, "
    "torch.Event and\n# pinned memory. On your hardware "
    'print(GenericBackend("{module}").findings) tries it all, and writes what goes here.'
)
_TRIED = (
    "# What was seen of the device: what torch itself serves, what to claim, which functions answer for devices\n"
    "# that are not there, and whether counting them initialises them. `devicekit new-backend --try` wrote it."
)


_STARTS = {
    Start.SIMULATED: (
        "All {hooks} hooks answer from devicekit's simulated accelerator, so that everything works on the first "
        "day, on any\nlaptop. When the last hook is yours, remove `_simulated` from `backend.py`,\n"
        "`automatic` from `backend.toml`, and `conformance.toml`, which names the probe that sees virtual time."
    ),
    Start.OVER_MODULE: (
        "The hooks come from `torch.{module}`, and from `torch.accelerator` where the module has none. Override "
        "in\n"
        "`backend.py` what is different; set what is not served to `None`."
    ),
    Start.PLAIN: (
        "`backend.py` has the three required hooks, and lists the others with their signatures: copy into the "
        "class\nthose that the vendor has."
    ),
}


def _render(template: str, values: Mapping[str, str]) -> str:
    source = resources.files(__package__) / "templates" / f"{template}.txt"
    return Template(source.read_text(encoding="utf-8")).substitute(values)
