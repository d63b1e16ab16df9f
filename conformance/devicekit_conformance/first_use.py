"""What is otherwise in a process once the device is used there: a hook that initialises it may change as much."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from devicekit_conformance import process_state

if TYPE_CHECKING:
    from devicekit_conformance.context import Context

__all__ = ["FirstUse", "changed_by_first_use"]


class FirstUse:
    """What is to be left out of a comparison that begins now: nothing, unless the device is first used then."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._unused = ctx.probe.initialised() is not True

    @property
    def excused(self) -> frozenset[str]:
        used = self._unused and self._ctx.probe.initialised() is not False
        return self._ctx.first_use if used else frozenset()

    def without(self, state: Mapping[str, object]) -> dict[str, object]:
        """The parts of ``state`` that are to be compared."""
        excused = self.excused
        return {name: value for name, value in state.items() if name not in excused}

    def replaced(self, code: Mapping[str, dict[str, object]]) -> list[str]:
        """The functions that are others now, as parts of a sentence; ``code`` is what they were."""
        excused = self.excused
        return [one for one in process_state.replaced(code, process_state.code()) if one not in excused]


def changed_by_first_use(ctx: Context) -> frozenset[str]:
    """Words for parts of the process's state, and paths of files, found in a forked child that uses the device.

    Empty where the device was used before: then there is nothing left to initialise.
    """
    if ctx.device_count == 0 or ctx.probe.initialised() is True:
        return frozenset()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            os.write(writing, json.dumps(sorted(_changes(ctx))).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return frozenset(json.loads(told)) if told else frozenset()


def _changes(ctx: Context) -> set[str]:
    before, code, opened = _state(), process_state.code(), process_state.descriptors()
    with contextlib.suppress(Exception):
        ctx.probe.tensor(4096, 0).fill_(1)
    now = _state()
    changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    changed |= set(process_state.replaced(code, process_state.code()))
    return changed | {
        path for number, path in process_state.descriptors().items() if opened.get(number) != path
    }


def _state() -> dict[str, object]:
    return {**process_state.system_state(), **process_state.python_state(), **process_state.torch_state()}
