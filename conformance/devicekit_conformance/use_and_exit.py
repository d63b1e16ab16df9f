"""Uses a backend's device once, says what never changes of it, and ends the way any program ends."""

from __future__ import annotations

import dataclasses
import json
import sys

from devicekit_conformance.context import MIB, Context
from devicekit_conformance.target import Target

__all__ = ["EXIT_STATUS", "facts"]

EXIT_STATUS = 7  # of a program that has something to report: who ends a process may not make it another

_OF_THE_BACKEND = (
    "is_available", "device_count", "collective_backend", "visible_devices_variable", "profiler_activity"
)  # fmt: skip
_OF_A_DEVICE = ("device_properties", "supported_dtypes", "priority_range", "copies_overlap", "memory_info")
_VARIES = frozenset({"free"})


def facts(context: Context) -> dict[str, object]:
    """What the backend says that is the same in every process of the machine, by words for a message."""
    found: dict[str, object] = {}
    for name in _OF_THE_BACKEND:
        if context.has(name):
            found[f"{name}()"] = str(context.hook(name)())
    for index in range(min(context.device_count, 2)):
        for name in _OF_A_DEVICE:
            if context.has(name):
                found.update(_told(f"{name}({index})", context.hook(name)(index)))
    return found


def _told(call: str, answer: object) -> dict[str, str]:
    if isinstance(answer, frozenset):
        return {call: str(sorted(map(str, answer)))}
    if not dataclasses.is_dataclass(answer):
        return {call: str(answer)}
    names = [one.name for one in dataclasses.fields(answer) if one.name not in _VARIES]
    return {f"{name} of {call}": str(getattr(answer, name)) for name in names}


def main(address: str, probe: str | None = None) -> None:
    """Allocate, wait, free, say what the backend says, and end with `EXIT_STATUS`."""
    context = Context(Target(address, probe))
    context.device_count  # noqa: B018  # opens the backend, which the probe may need to have happened
    block = context.probe.tensor(MIB, 0)
    context.hook("synchronize")(0)
    del block
    print(json.dumps(facts(context)), flush=True)
    sys.exit(EXIT_STATUS)


if __name__ == "__main__":
    main(*sys.argv[1:])
