"""DK-ORDER: synchronize() returns, and returns only when the work is done."""

from __future__ import annotations

from devicekit_conformance.context import Context, NotApplicable, NotRun, expect
from devicekit_conformance.outcomes import Level
from devicekit_conformance.rulebook import requirement


@requirement("DK-ORDER-001", profile="core", isolated=30.0, device=False, unwaivable=True)
def synchronize_returns(ctx: Context) -> None:
    """synchronize() MUST return on a device that has nothing to do."""
    if ctx.device_count == 0:
        raise NotRun("there is no device on this machine")
    for _ in range(3):
        ctx.hook("synchronize")(0)


@requirement("DK-ORDER-002", profile="core", after=["DK-ORDER-001"], unwaivable=True)
def synchronize_waits(ctx: Context) -> None:
    """synchronize() MUST NOT return before all work submitted to the device has finished."""
    for _ in range(3):
        token = ctx.probe.submit(0, None)
        if token is None:
            raise NotRun("the probe cannot submit work that it can ask about")
        ctx.hook("synchronize")(0)
        expect(token.done(), "work submitted before synchronize() was still running after it")


@requirement("DK-ORDER-003", profile="hardware", after=["DK-ORDER-002"], min_devices=2, unwaivable=True)
def synchronize_waits_for_the_device_named(ctx: Context) -> None:
    """synchronize(index) MUST wait for the device it names, whichever is current."""
    token = ctx.probe.submit(1, None)
    if token is None:
        raise NotRun("the probe cannot submit work that it can ask about")
    ctx.hook("synchronize")(1)
    expect(token.done(), "work on device 1 was still running after synchronize(1) with device 0 current")


@requirement("DK-ORDER-004", Level.SHOULD, profile="hardware", after=["DK-ORDER-003"], min_devices=2)
def synchronize_leaves_other_devices_alone(ctx: Context) -> None:
    """synchronize(index) SHOULD NOT wait for other devices."""
    tokens = [ctx.probe.submit(1, None) for _ in range(4)]
    if tokens[-1] is None or tokens[-1].done():
        raise NotApplicable("work on this device is finished when it is submitted")
    ctx.hook("synchronize")(0)
    pending = not tokens[-1].done()
    ctx.hook("synchronize")(1)
    expect(pending, "work on device 1 was finished when synchronize(0) returned")
