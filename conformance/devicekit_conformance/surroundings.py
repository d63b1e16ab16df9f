"""What a call must leave alone, the process and every device: taken before it, taken after, and compared."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from devicekit_conformance import process_state, processes
from devicekit_conformance.first_use import FirstUse

if TYPE_CHECKING:
    from devicekit_conformance.context import Context

__all__ = ["OF_THE_HOST", "Surroundings", "runtime"]

_SELECTING = frozenset({"set_index"})
_STREAMING = frozenset({"set_current_stream"})
# The cpu's own hooks seed these.
OF_THE_HOST = ("torch's host random state", "torch.initial_seed()")
_SEEDING = frozenset({"manual_seed", "set_rng_state"})


def runtime(ctx: Context) -> Any:
    """torch's own module for the device, a road that no hook steers; ``None`` where there is none."""
    return getattr(ctx.probe, "runtime", None)


class Surroundings:
    """The surroundings of one call of ``hook``, which may change what it is for on device ``index``.

    A call that is refused may change nothing: give no ``hook`` then.
    """

    def __init__(self, ctx: Context, hook: str, index: int, thorough: bool = True) -> None:
        self._ctx, self._hook, self._index, self._thorough = ctx, hook, index, thorough
        self.process = self._take_process()
        self._code = process_state.code() if thorough else {}
        self._devices = self._take_devices()
        self._descriptors = process_state.descriptors()
        self._use = FirstUse(ctx)

    def changes(self) -> list[str]:
        """What is different now, as parts of a sentence."""
        use = self._use
        told = process_state.changes(use.without(self.process), use.without(self._take_process()))
        told += use.replaced(self._code) if self._thorough else []
        devices = self._take_devices()
        # Of devices that had been initialised before.
        before = {name: value for name, value in self._devices.items() if name in devices}
        told += process_state.changes(before, {name: devices[name] for name in before})
        opened = process_state.descriptors()
        told += [
            f"{path} is left open"
            for number, path in opened.items()
            if self._descriptors.get(number) != path and path not in use.excused
        ]
        told += ["an open file was closed" for number in self._descriptors if number not in opened][:1]
        return told

    def _take_process(self) -> Mapping[str, object]:
        found: dict[str, object] = {"what was written to its output": _written()}
        found.update(process_state.system_state())
        found["the processes that it started"] = processes.started()
        if self._thorough:
            found.update(process_state.python_state())
            found.update(process_state.torch_state())
            if self._hook in _SEEDING and self._ctx.manifest.device_type == "cpu":
                for name in OF_THE_HOST:
                    found.pop(name, None)
            found["the files in the working directory"] = process_state.files()
        return found

    def _take_devices(self) -> Mapping[str, object]:
        probe, found = self._ctx.probe, dict[str, object]()
        if self._hook not in _SELECTING:
            current = probe.current_index()  # where nothing has used a device, nothing has chosen one
            found["the current device"] = 0 if current is None and probe.initialised() is False else current
        module = runtime(self._ctx)
        if module is None or probe.initialised() is not True:
            return found
        for index in range(count_of(self._ctx)):
            if self._hook not in _STREAMING or index != self._index:
                found[f"the current stream of device {index}"] = _ask(
                    partial(_of, module, "current_stream", index)
                )
            if self._hook not in _SEEDING or index != self._index:
                state: Any = _ask(partial(_of, module, "get_rng_state", index))
                found[f"the random state of device {index}"] = (
                    None if state is None else state.numpy().tobytes()
                )
        return found


def count_of(ctx: Context) -> int:
    """Devices by torch's own count, or by the backend's."""
    counted = _ask(lambda: runtime(ctx).device_count())
    return (
        counted
        if isinstance(counted, int) and not isinstance(counted, bool) and counted
        else ctx.device_count
    )


def _ask(question: Callable[[], object]) -> object:
    with contextlib.suppress(Exception):
        return question()
    return None


def _of(module: object, name: str, index: int) -> object:
    return getattr(module, name)(index)  # a module may lack either


def _written() -> int:
    """Bytes that are in the files behind standard output and error."""
    size = 0
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        with contextlib.suppress(Exception):
            stream.flush()
        with contextlib.suppress(OSError):
            size += os.fstat(number).st_size
    return size
