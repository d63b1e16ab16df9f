"""What many calls of a hook leave behind."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devicekit_conformance.anywhere import refuses_quietly
from devicekit_conformance.calling import arguments_for
from devicekit_conformance.effects import effect_of
from devicekit_conformance.repeated import fail_once, repeat, within, wrong_arguments
from devicekit_conformance.trial import Trial

_KEPT_BY_DRIVERS = frozenset({"memory_pool", "create_graph"})
# A leak of one in so many calls is one; memory is counted in KiB, of which a call may leave one behind.
_RARELY = {"objects": 5, "KiB of memory": 1}
_WINDOWS = 8  # so many rounds of calls must all leave something behind before it is a leak


def leaking(trial: Trial) -> None:
    """Many calls in a row, and many that raise."""
    # Here and not where answers are compared later: a hook may have none once it has raised.
    refuses_quietly(trial)
    used = trial.tensor(4096)  # before the device is used many a hook does nothing, and refuses nothing
    arguments = arguments_for(trial)
    gc.freeze()  # what is there already need not be looked through each time
    if (
        arguments is not None
        and trial.hook not in _KEPT_BY_DRIVERS
        and (trial.runtime is not None or trial.hook != "create_stream")
    ):
        repeat(trial, arguments, 30, 1.0)
        objects = tuple(one for one in arguments if not isinstance(one, int | float | str | None))
        _keeps_nothing(trial, "", lambda: repeat(trial, arguments, 150, 1.5), objects)
    if arguments is None:
        run = effect_of(trial.hook)
        run(trial)
        _keeps_nothing(trial, " with all that belongs to them", lambda: _use(trial, run), own_objects=True)
    wrong = wrong_arguments(trial)
    if wrong is not None and fail_once(trial, 10):
        _keeps_nothing(trial, " that raise", lambda: _raise(trial, wrong, 150))
    del used


def _use(trial: Trial, run: Callable[[Trial], None]) -> int:
    """Run an effect some times; returns how many calls of the hook that were."""
    before = trial.calls[0]
    for _ in range(6):
        run(within(trial, "", watched=False))
    trial.drop_cache()  # of what the effect itself allocated the device keeps what it knows
    return trial.calls[0] - before


def _raise(trial: Trial, arguments: tuple[Any, ...], calls: int) -> int:
    function, failed, ends = trial.ctx.raw_hook(trial.hook), 0, time.monotonic() + 1.5
    for _ in range(calls):
        try:
            function(*arguments)
        except Exception:
            failed += 1
        if time.monotonic() > ends:
            break
    return max(failed, 1)


def _keeps_nothing(
    trial: Trial, kind: str, run: Callable[[], int], given: tuple[object, ...] = (), own_objects: bool = False
) -> None:
    """Fail where so many calls leave as many things behind, each time: a cache that fills comes to an end.

    Args:
        given: what each call is given, which is not to be kept.
        own_objects: whether what is run makes a few objects beside the hook's.
    """
    grown: dict[str, int] = {}
    calls = 1
    for _ in range(_WINDOWS):
        gc.collect()
        before = _things(trial, given)
        calls = run()
        if not calls:
            return
        gc.collect()
        after = _things(trial, given)
        least = {name: max(3, calls // _RARELY.get(name, 12)) for name in after}
        if own_objects:
            least["objects"] = 3 * calls
        now = {
            name: after[name] - before[name] for name in after if after[name] - before[name] >= least[name]
        }
        grown = {name: count for name, count in now.items() if not grown or name in grown}
        if not grown:
            return
    told = ", ".join(f"{count} {name}" for name, count in grown.items())
    trial.fail(f"{calls} calls{kind} left {told} behind")


def _things(trial: Trial, given: tuple[object, ...]) -> dict[str, int]:
    found = {"objects": sys.getallocatedblocks(), "threads": len(sys._current_frames())}
    with contextlib.suppress(OSError, IndexError):
        data = Path("/proc/self/statm").read_text(encoding="ascii").split()[5]
        found["KiB of memory"] = int(data) * os.sysconf("SC_PAGE_SIZE") // 1024
    found["references to what it was given"] = sum(map(sys.getrefcount, given))
    if os.path.isdir("/proc/self/fd"):
        found["open files"] = len(os.listdir("/proc/self/fd"))
    for index in range(trial.count):
        own = trial.own("memory_stats", index)
        if isinstance(own, dict) and "allocation.all.current" in own:
            found[f"blocks of device {index}"] = own["allocation.all.current"]
    return found
