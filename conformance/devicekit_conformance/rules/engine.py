"""DK-ENGINE: the real scheduler, pools, weight update and flush run on the backend, and lose nothing."""

from __future__ import annotations

from devicekit_conformance import engine_checks
from devicekit_conformance.context import Context, expect
from devicekit_conformance.rulebook import requirement


@requirement("DK-ENGINE-001", profile="engine", after=["DK-ORDER-001", "DK-CORE-004"])
def an_engine_serves(ctx: Context) -> None:
    """An engine MUST serve on the backend: requests get the tokens that their model gives, nothing is lost.

    Six requests share a KV pool too small for all of them; while they run, generation is paused in place, the
    weights are updated, generation goes on, and a flush waits for the end.
    """
    faults = engine_checks.serving_faults(ctx.device())
    expect(not faults, "; ".join(faults[:5]))


@requirement("DK-ENGINE-002", profile="engine", after=["DK-ORDER-001"])
def memory_left_is_exact_or_unknown(ctx: Context) -> None:
    """The memory that is left MUST be an exact number of bytes, or None where the backend cannot know it."""
    from devicekit.device import available_memory

    found = available_memory(ctx.device())
    for name in ("driver_free", "reusable"):
        value = getattr(found, name)
        expect(value is None or (type(value) is int and value >= 0), f"{name} is {value!r}")
    asked = ctx.claims("driver_memory")
    expect(not asked or found.bytes is not None, "driver_memory is claimed, and the engine learns nothing")


@requirement("DK-ENGINE-003", profile="engine", after=["DK-ENGINE-001"])
def serving_again_takes_nothing_more(ctx: Context) -> None:
    """Memory MUST return to where it was when an engine has ended, so that another can take its place."""
    import gc

    device = ctx.device()
    levels = []
    for _ in range(3):
        engine_checks.serving_faults(device)
        gc.collect()
        device.empty_cache()
        levels.append(device.memory_stats().allocated)
    expect(len(set(levels)) == 1, f"allocated was {levels} after each of three engines")
