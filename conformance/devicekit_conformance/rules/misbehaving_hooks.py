"""DK-SAFE: whatever a hook does instead of its work, an engine stays safe and says what happened."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from devicekit_conformance import asking, engine_checks, hook_faults
from devicekit_conformance.altered import (
    AFTER,
    REQUIRED,
    asked_by_the_host,
    device_with,
    device_without,
    expect_none,
    name_with,
    others_broken,
)
from devicekit_conformance.context import Context
from devicekit_conformance.frozen_contract import HOOKS
from devicekit_conformance.hook_faults import NotInTheContract, PlantedError
from devicekit_conformance.rulebook import requirement

if TYPE_CHECKING:
    from devicekit.device import Device

_PROBES = ("is_available", "device_count")
_RUBBISH: tuple[object, ...] = (None, NotInTheContract(), 1, "text", b"", [], True)
_PATIENCE = 5.0  # seconds within which everything that does not hang must answer


# A step runs on its device, whichever is current: without these it can only raise what they raise.
_STEPS_REST_ON = frozenset({"current_index", "set_index"})


def _faults_over(device: Device, hook: str) -> list[str]:
    """What goes wrong in an engine over the device; an error that a step rests on, and that is named, is none."""
    return _not_rested_on(engine_checks.faults_over(device), hook)


def _not_rested_on(found: list[str], hook: str) -> list[str]:
    if hook not in _STEPS_REST_ON:
        return found
    named = [
        f"{kind}: {one} of backend" for kind in ("HookError", "HookResultError") for one in _STEPS_REST_ON
    ]
    return [one for one in found if not any(text in one for text in named)]


@requirement("DK-SAFE-004", profile="engine", after=["DK-SAFE-001"])
def a_raising_hook_is_named(ctx: Context) -> None:
    """An exception in a hook MUST reach the caller as HookError, naming the hook, with its cause.

    classify_error is the exception: it is asked inside handlers, and answers None.
    """
    from devicekit.contract.errors import HookError

    faults: list[str] = []
    # SystemExit is what a driver's wrapper raises when it gives up; it must not end the engine.
    cases: list[tuple[str, BaseException]] = [(hook, PlantedError("planted")) for hook in asking.ASK]
    cases += [
        (hook, SystemExit(3)) for hook in ("memory_stats", "empty_cache", "synchronize", "current_index")
    ]
    for hook, planted in cases:
        ctx.note(f"{hook} raising {type(planted).__name__}")

        def body(*_: object, planted: BaseException = planted) -> object:
            raise planted

        with device_with(ctx, hook, body) as device:
            if not asking.asked_through_hook(device, hook):
                continue
            try:
                answer = asking.ASK[hook](device)
                if hook != "classify_error" or answer is not None:
                    faults.append(f"{hook} raised, and the caller got {answer!r}")
            except HookError as error:
                if error.hook != hook or error.__cause__ is not planted:
                    faults.append(
                        f"the HookError of {hook} names {error.hook!r} and its cause is {error.__cause__!r}"
                    )
            except (Exception, SystemExit) as error:
                faults.append(f"{hook} raised, and the caller got {type(error).__name__}")
            faults.extend(others_broken(ctx, device, hook) if not asked_by_the_host(hook) else [])
            faults.extend(f"{hook} raising: {one}" for one in _faults_over(device, hook))
    expect_none(faults)


@requirement("DK-SAFE-005", profile="engine", after=["DK-SAFE-004"])
def out_of_memory_keeps_its_type(ctx: Context) -> None:
    """Out of memory in a hook MUST reach the caller with its own type, whatever hook it happens in."""
    import torch

    faults: list[str] = []

    def body(*_: object) -> object:
        raise torch.OutOfMemoryError("planted")

    for hook in asking.ASK:
        if hook == "classify_error":
            continue
        with device_with(ctx, hook, body) as device:
            if not asking.asked_through_hook(device, hook):
                continue
            try:
                faults.append(f"{hook} ran out of memory, and the caller got {asking.ASK[hook](device)!r}")
            except torch.OutOfMemoryError:
                continue
            except Exception as error:
                faults.append(f"{hook} ran out of memory, and the caller got {type(error).__name__}")
    expect_none(faults)


@requirement("DK-SAFE-006", profile="engine", after=["DK-SAFE-001"])
def a_wrong_result_is_refused(ctx: Context) -> None:
    """A hook that returns the wrong type, or None for a value, MUST be refused by HookResultError by name."""
    from devicekit.contract.errors import HookResultError

    faults: list[str] = []
    for hook in asking.CHECKED:
        for value in _RUBBISH:
            if asking.may_return(hook, value):
                continue
            with device_with(ctx, hook, lambda *_, value=value: value) as device:
                try:
                    answer = asking.ASK[hook](device)
                    faults.append(f"{hook} returned {value!r}, and the caller got {answer!r}")
                except HookResultError as error:
                    if error.hook != hook:
                        faults.append(f"the HookResultError of {hook} names {error.hook!r}")
                except Exception as error:
                    faults.append(f"{hook} returned {value!r}, and the caller got {type(error).__name__}")
                if value is _RUBBISH[-1] or value is None:
                    said = _faults_over(device, hook)
                    faults.extend(f"{hook} returning {value!r}: {one}" for one in said)
    expect_none(faults)


@requirement("DK-SAFE-007", profile="engine", after=["DK-SAFE-001"], unwaivable=True)
def a_hanging_hook_holds_up_nobody_else(ctx: Context) -> None:
    """While a hook hangs in one thread, other threads MUST be able to open backends and call other hooks."""
    faults: list[str] = []
    for hook in asking.ASK:
        ctx.note(f"{hook} hanging")
        gate = hook_faults.Gate()
        with device_with(ctx, hook, gate) as device:
            if not asking.asked_through_hook(device, hook):
                continue
            stuck = threading.Thread(target=_ignore_errors, args=(asking.ASK[hook], device), daemon=True)
            stuck.start()
            if not gate.entered.wait(_PATIENCE):
                faults.append(f"asking for {hook} did not reach the backend")
            started = time.monotonic()
            faults.extend(others_broken(ctx, device, hook) if not asked_by_the_host(hook) else [])
            with device_without(ctx, frozenset(HOOKS) - REQUIRED) as other:
                other.synchronize()
            spent = time.monotonic() - started
            gate.release()
            stuck.join(_PATIENCE)
            if spent > _PATIENCE:
                faults.append(f"while {hook} hung, other hooks took {spent:.1f} s")
            if stuck.is_alive():
                faults.append(f"the caller of {hook} never came back")
    expect_none(faults)


def _ignore_errors(ask: Callable[[Device], object], device: Device) -> None:
    try:
        ask(device)
    except Exception:  # what it ends with, once released, is judged elsewhere
        return


@requirement("DK-SAFE-008", profile="engine", after=["DK-SAFE-002"], unwaivable=True)
def a_broken_presence_check_is_refused(ctx: Context) -> None:
    """Where is_available() or device_count() raises, hangs or contradicts, opening MUST fail, in time."""
    from devicekit.contract.errors import BackendLoadError, BackendUnavailable
    from devicekit.device import get_device

    faults: list[str] = []
    gate = hook_faults.Gate()
    bodies: dict[str, Callable[..., object]] = {
        "raising": _raise_planted,
        "exiting": _raise_exit,
        "hanging": gate,
        "returning None": lambda: None,
        "returning an object": NotInTheContract,
        "returning 1.5": lambda: 1.5,
        "returning -1": lambda: -1,
    }
    os.environ["DEVICEKIT_PROBE_TIMEOUT"] = "0.5"
    for hook in _PROBES:
        for what, body in bodies.items():
            ctx.note(f"{hook} {what}")
            started = time.monotonic()
            with name_with(ctx, hook, body) as name:
                try:
                    get_device(name)
                    faults.append(f"a backend with {hook} {what} was opened")
                except (BackendLoadError, BackendUnavailable) as error:
                    if name not in str(error):
                        faults.append(f"with {hook} {what}, the refusal does not name the backend: {error}")
                except Exception as error:
                    faults.append(f"with {hook} {what}, {type(error).__name__} was raised")
            if time.monotonic() - started > _PATIENCE:
                faults.append(f"with {hook} {what}, opening took {time.monotonic() - started:.1f} s")
    gate.release()
    del os.environ["DEVICEKIT_PROBE_TIMEOUT"]
    expect_none(faults)


def _raise_planted() -> object:
    raise PlantedError("planted")


def _raise_exit() -> object:
    raise SystemExit(3)


@requirement("DK-SAFE-009", profile="engine", after=AFTER)
def a_lie_stays_where_it_is(ctx: Context) -> None:
    """A hook that lies MUST NOT make the host lose data, crash, or claim what it did not measure."""
    faults: list[str] = []
    for hook, value in _lies(ctx).items():
        ctx.note(f"{hook} lying")
        with device_with(ctx, hook, lambda *_, value=value: value) as device:
            faults.extend(f"with {hook} lying, {one}" for one in _faults_over(device, hook))
            faults.extend(_not_rested_on(others_broken(ctx, device, hook), hook))
    with device_with(ctx, "empty_cache", lambda: None) as device:
        released = device.empty_cache().released
        if released:
            faults.append(f"empty_cache does nothing, and {released} bytes are said to be released")
    expect_none(faults)


def _lies(ctx: Context) -> dict[str, object]:
    """For each observing hook a value of the right type that is false."""
    from devicekit.contract import records

    huge = 1 << 62
    ok = records.AllocatorState.OK
    return {
        "memory_stats": records.MemoryStats(state=ok, allocated=huge, active=0, reserved=1, peak_allocated=0),
        "memory_info": records.MemoryInfo(free=huge, total=1, source="runtime"),
        "host_memory_stats": records.HostMemoryStats(allocated=huge, reserved=0),
        "device_properties": records.DeviceProperties(name="", total_memory=-1, compute_units=0),
        "is_capturing": True,
        "copies_overlap": True,
        "is_bad_fork": True,
        "collective_backend": "no such backend",
        "visible_devices_variable": "NO_SUCH_VARIABLE",
        "classify_error": records.ErrorKind.OUT_OF_MEMORY,
        "process_memory": (records.ProcessMemory(pid=-1, used=-1),),
        "current_index": 10_000,
    }
