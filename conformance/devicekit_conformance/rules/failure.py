"""DK-OOM: running out of memory is recognised, nothing else is taken for it, and the device survives it."""

from __future__ import annotations

from collections.abc import Callable

from devicekit_conformance import frozen_contract
from devicekit_conformance.context import MIB, Context, NotApplicable, expect, fail
from devicekit_conformance.measures import BLOCK, filled, info, intact, known, settle
from devicekit_conformance.rulebook import requirement


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("this exception cannot be printed")


def _is_out_of_memory(ctx: Context, error: BaseException) -> bool:
    kind = ctx.result("classify_error", error)
    return getattr(kind, "value", None) == "out_of_memory"


@requirement("DK-OOM-001", profile="memory", hooks=["classify_error"], after=["DK-CACHE-002"])
def running_out_is_recognised(ctx: Context) -> None:
    """classify_error() MUST recognise what the runtime raises when the device has no memory left."""
    ctx.needs_its_memory()
    error = ctx.probe.exhaust(0)
    settle(ctx)
    said = f"{type(error).__name__}: {str(error)[:200]}"
    expect(_is_out_of_memory(ctx, error), f"it does not recognise {said}")


@requirement("DK-OOM-002", profile="memory", hooks=["classify_error"])
def other_errors_are_not_taken_for_it(ctx: Context) -> None:
    """classify_error() MUST NOT take another error for out of memory, whatever words its text contains."""
    others = (
        RuntimeError("expected a tensor of shape [2], got [3]"),
        RuntimeError("the word 'out of memory' in a prompt is no error"),
        ValueError("out of memory"),
        KeyError("CUDA out of memory"),
        RuntimeError(""),
        OSError(28, "No space left on device"),
        TimeoutError("the job ran out of memory budget hours"),
        NotImplementedError("out of memory handling is not implemented"),
    )
    wrong = [repr(error) for error in others if _is_out_of_memory(ctx, error)]
    expect(not wrong, f"it takes these for out of memory: {', '.join(wrong)}")


@requirement("DK-OOM-003", profile="core", hooks=["classify_error"])
def classifying_never_raises(ctx: Context) -> None:
    """classify_error() MUST NOT raise, whatever exception it is given, and MUST return an ErrorKind or None."""
    loop = RuntimeError("a cause that is its own")
    loop.__context__ = ValueError("inner")
    loop.__context__.__context__ = loop
    odd: tuple[BaseException, ...] = (
        Exception(),
        Exception(None, 1, b"\xff"),
        _Unprintable(),
        RuntimeError("\udcff"),
        KeyboardInterrupt(),
        SystemExit(1),
        loop,
    )
    for error in odd:
        ctx.note(type(error).__name__)
        kind = ctx.result("classify_error", error)
        value = getattr(kind, "value", None)
        expect(kind is None or value in frozen_contract.ERROR_KINDS, f"it returned {kind!r}")
        expect(value != "out_of_memory", f"it takes {type(error).__name__} for out of memory")


@requirement("DK-OOM-004", profile="memory", hooks=["classify_error"], after=["DK-OOM-001"])
def a_wrapped_error_is_recognised(ctx: Context) -> None:
    """classify_error() MUST recognise out of memory through __cause__ and __context__."""
    ctx.needs_its_memory()
    error = ctx.probe.exhaust(0)
    settle(ctx)
    for name, wrap in (("__cause__", _caused_by), ("__context__", _in_context_of)):
        recognised = _is_out_of_memory(ctx, wrap(error))
        expect(recognised, f"it does not recognise a RuntimeError whose {name} is {type(error).__name__}")


def _caused_by(error: BaseException) -> RuntimeError:
    outer = RuntimeError("the step failed")
    outer.__cause__ = error
    return outer


def _in_context_of(error: BaseException) -> RuntimeError:
    outer = RuntimeError("the step failed")
    outer.__context__ = error
    return outer


@requirement("DK-OOM-005", profile="memory", after=["DK-CACHE-002"], unwaivable=True)
def the_device_survives(ctx: Context) -> None:
    """A device MUST be usable after it ran out of memory, and live data MUST be intact."""
    live = filled(ctx, BLOCK, 5)
    ctx.probe.exhaust(0)
    settle(ctx)
    fresh = filled(ctx, MIB, 6)
    ctx.hook("synchronize")(0)
    expect(intact(fresh, 6), "a block made after running out of memory holds other data")
    expect(intact(live, 5), "a block that was live while memory ran out holds other data")


@requirement(
    "DK-OOM-006",
    profile="memory",
    hooks=["set_memory_fraction", "classify_error", "memory_info"],
    capabilities=["memory_fraction"],
    after=["DK-OOM-001"],
)
def the_fraction_limits(ctx: Context) -> None:
    """set_memory_fraction() MUST make an allocation beyond the fraction fail as out of memory."""
    total = known(info(ctx).total, "total")
    settle(ctx)
    ctx.result("set_memory_fraction", 0, 0.1)
    try:
        error = _attempt(lambda: ctx.probe.tensor(total // 5, 0))
    finally:
        ctx.hook("set_memory_fraction")(0, 1.0)
        settle(ctx)
    if error is None:
        fail("a fifth of the device could be allocated with the limit at a tenth")
    expect(_is_out_of_memory(ctx, error), f"it does not recognise {type(error).__name__}: {error}")


@requirement("DK-OOM-007", profile="memory", hooks=["set_memory_fraction"], after=["DK-ORDER-001"])
def impossible_fractions_are_refused(ctx: Context) -> None:
    """set_memory_fraction() MUST refuse a fraction that is not between 0 and 1."""
    if not ctx.claims("memory_fraction"):
        raise NotApplicable("the backend does not claim memory_fraction")
    for fraction in (-0.5, float("nan")):
        error = _attempt(lambda fraction=fraction: ctx.raw_hook("set_memory_fraction")(0, fraction))  # type: ignore[misc]
        expect(error is not None, f"it accepted {fraction}")


def _attempt(action: Callable[[], object]) -> Exception | None:
    try:
        action()
    except Exception as error:
        return error
    return None
