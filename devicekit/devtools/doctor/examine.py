"""One examination of an installation, for a process that may die of it.

`main` prints one line of JSON, the last of its output: vendors' libraries print what they like before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING

from devicekit.registry.installed import entries

if TYPE_CHECKING:
    from devicekit.registry.selection import Selection

Finding = Mapping[str, object]
AUTOLOAD_GROUP = "torch.backends"


def examine_torch(_: str) -> Finding:
    """Import torch as a program would."""
    import torch

    build = {
        name: value
        for name, value in sorted(vars(torch.version).items())
        if isinstance(value, str) and not name.startswith("_")
    }
    return {"version": torch.__version__, "build": build}


def examine_autoload(name: str) -> Finding:
    """Do by hand what torch does with one of its backend entry points when it is imported."""
    import torch  # noqa: F401  # the entry point expects it to be there

    for entry in entries(AUTOLOAD_GROUP):
        if entry.name == name and entry.problem is None:
            metadata.EntryPoint(name, entry.value, AUTOLOAD_GROUP).load()()
    return {}


def examine_backend(name: str) -> Finding:
    """Open a backend by name, and let its devices say what they are."""
    from devicekit.registry.selection import select

    return _facts(select(name))


def _facts(selection: Selection) -> Finding:
    from devicekit.device import device_of
    from devicekit.registry.notices import notices
    from devicekit.registry.selection import Verdict

    report = next(one for one in selection.candidates if one.verdict is Verdict.CHOSEN)
    devices = [device_of(selection.backend, index) for index in range(report.device_count or 0)]
    return {
        "reason": report.reason,
        "hooks": len(selection.backend.implemented),
        "newer": list(selection.backend.newer),
        "notices": list(notices(selection.backend)),
        "devices": [
            {"name": device.properties().name, "total_memory": device.properties().total_memory}
            for device in devices
        ],
    }


def examine_choice(_: str) -> Finding:
    """Choose as `devicekit.get_device()` does, and let the chosen devices say what they are."""
    from devicekit.registry.selection import select

    selection = select()
    verdicts = {
        one.name: {"verdict": one.verdict.value, "reason": one.reason} for one in selection.candidates
    }
    try:
        chosen = {"ok": True, **_facts(selection)}
    except Exception:  # asking for it by name, in a process of its own, says what is wrong
        chosen = {"ok": False}
    return {
        "backend": selection.backend.name,
        "request": selection.request,
        "verdicts": verdicts,
        "chosen": chosen,
        "release": _wrong_release_setting(),
    }


def _wrong_release_setting() -> str | None:
    """What an engine would refuse of the settings of release points."""
    from devicekit.contract.errors import ConfigurationError
    from devicekit.release.settings import read_settings

    try:
        read_settings()
    except ConfigurationError as error:
        return str(error)
    return None


EXAMINATIONS: Mapping[str, Callable[[str], Finding]] = {
    "torch": examine_torch,
    "autoload": examine_autoload,
    "backend": examine_backend,
    "choice": examine_choice,
}


def main(arguments: list[str]) -> None:
    what, name = arguments
    started = time.perf_counter()
    try:
        found: dict[str, object] = {"ok": True, **EXAMINATIONS[what](name)}
    except BaseException as error:  # whatever a vendor's import does is the finding
        kind = type(error)
        found = {"ok": False, "error": f"{kind.__name__}: {error}", "kind": kind.__name__}
    found["seconds"] = round(time.perf_counter() - started, 3)
    print("\n" + json.dumps(found), flush=True)
