"""DK-SAFE: whatever hook is missing, an engine stays safe and says so.

The backend under test loses one hook at a time and is opened beside the original. What is judged is the host over
this backend: expected answers come from the suite's own copy of the contract.
"""

from __future__ import annotations

import dataclasses

from devicekit_conformance import asking, engine_checks, hook_faults
from devicekit_conformance.altered import (
    AFTER,
    REQUIRED,
    device_without,
    expect_none,
    name_with,
    others_broken,
)
from devicekit_conformance.context import Context, expect
from devicekit_conformance.frozen_contract import HOOKS
from devicekit_conformance.rulebook import requirement


@requirement("DK-SAFE-001", profile="engine", after=AFTER)
def a_missing_hook_has_its_answer(ctx: Context) -> None:
    """For each hook that is missing, the host MUST answer as its kind says, and every other hook MUST still work.

    Ordering raises UnsupportedHook, releasing does nothing and says so, observing answers None.
    """
    faults: list[str] = []
    for hook in HOOKS:
        if hook in REQUIRED:
            continue
        ctx.note(f"{hook} missing")
        with device_without(ctx, frozenset({hook})) as device:
            if hook != "set_index" or device.backend.manifest.indexed:
                fault = asking.fault_of_missing(device, hook)
                faults.extend([fault] if fault else [])
            faults.extend(others_broken(ctx, device, hook))
            faults.extend(f"without {hook}, {one}" for one in engine_checks.faults_over(device))
    expect_none(faults)


@requirement("DK-SAFE-002", profile="engine", after=AFTER)
def a_missing_required_hook_is_refused(ctx: Context) -> None:
    """A backend without a required hook MUST be refused by an error that names backend and hook."""
    from devicekit.contract.errors import InvalidHooks
    from devicekit.device import get_device

    faults: list[str] = []
    for hook in sorted(REQUIRED):
        plugin = hook_faults.without(ctx.plugin, ctx.implemented, frozenset({hook}))
        manifest = hook_faults.manifest_for(ctx.manifest, ctx.implemented - {hook})
        with hook_faults.offered(plugin, manifest) as name:
            try:
                get_device(name)
                faults.append(f"a backend without {hook} was opened")
            except InvalidHooks as error:
                if hook not in str(error) or name not in str(error):
                    faults.append(f"the refusal names not both: {error}")
            except Exception as error:
                faults.append(f"without {hook}, {type(error).__name__} was raised: {error}")
    expect_none(faults)


@requirement("DK-SAFE-003", profile="engine", after=["DK-SAFE-001"])
def everything_optional_may_be_missing(ctx: Context) -> None:
    """With every optional hook missing at once, each MUST have its answer, and an engine MUST still run."""
    optional = frozenset(HOOKS) - REQUIRED
    with device_without(ctx, optional) as device:
        faults = [
            fault
            for hook in sorted(optional)
            if hook != "set_index" or device.backend.manifest.indexed
            if (fault := asking.fault_of_missing(device, hook)) is not None
        ]
        faults.extend(engine_checks.faults_over(device))
        device.synchronize()
    expect_none(faults)


@requirement("DK-SAFE-010", profile="engine", after=AFTER)
def backends_do_not_answer_for_each_other(ctx: Context) -> None:
    """A backend that lacks a hook MUST NOT be answered for by another backend that has it."""
    from devicekit.contract import records
    from devicekit.device import get_device

    planted = records.MemoryInfo(free=1, total=2, source="runtime")
    with name_with(ctx, "memory_info", lambda index: planted) as other:
        witness = get_device(other)
        with device_without(ctx, frozenset({"memory_info"})) as device:
            expect(witness.memory_info() == planted, "a backend's own hook was not called")
            found = device.memory_info()
            unknown = all(value is None for value in dataclasses.astuple(found))
            expect(unknown, f"a backend without memory_info answered {found}")
