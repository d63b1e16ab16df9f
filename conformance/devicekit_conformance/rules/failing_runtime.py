"""DK-HYG: what the vendor's runtime raises inside a hook reaches whoever called the hook."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

from devicekit_conformance import frozen_contract
from devicekit_conformance.context import Context, NotApplicable, fail
from devicekit_conformance.rulebook import requirement

_AFTER = ("DK-CORE-005",)
_PLACES = 3  # of the calls that a hook makes, as many are made to raise, one after another
_PRESENCE = frozenset({"is_available", "device_count"})  # where "no device" is an answer to any error


class _Broken(Exception):
    """Nobody can know it, so nobody catches it who does not catch everything."""


@requirement("DK-HYG-009", profile="core", isolated=60.0, after=_AFTER)
def errors_of_the_runtime_come_through(ctx: Context) -> None:
    """A hook MUST let an exception that it does not know through, rather than answer as if all were well."""
    _judge(ctx, _Broken, _PRESENCE)


@requirement("DK-HYG-010", profile="core", isolated=60.0, after=_AFTER)
def interrupts_come_through(ctx: Context) -> None:
    """A hook MUST let KeyboardInterrupt through, or nobody can end a program that is busy in it."""
    _judge(ctx, KeyboardInterrupt, frozenset())


def _judge(ctx: Context, kind: type[BaseException], spared: frozenset[str]) -> None:
    delivered = False
    what = "an error" if kind is _Broken else kind.__name__
    for name in sorted(ctx.implemented - spared):
        spec = frozen_contract.hook(name)
        if not spec.harmless:
            continue
        function = ctx.raw_hook(name)
        arguments = (0,) if spec.parameters else ()
        ctx.note(name)
        function(*arguments)  # what is done once, when first asked, is over
        for place in range(_PLACES):
            reached, swallowed = _with_fault(lambda: function(*arguments), kind, place)  # noqa: B023  # called at once
            if swallowed:
                fail(f"{name} swallowed {what} that was raised inside it")
            delivered |= reached
    if not delivered:
        raise NotApplicable("no hook calls anything")


def _with_fault(call: Callable[[], object], kind: type[BaseException], place: int) -> tuple[bool, bool]:
    """Raise ``kind`` at one of the calls that a hook makes: whether it was raised, and whether swallowed."""
    hook: list[FrameType] = []
    left = place
    raised = False

    def watch(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left, raised
        if event == "call" and not hook and frame.f_code is not getattr(call, "__code__", None):
            hook.append(frame)
            return
        inside = event == "c_call" and hook and frame is hook[0]
        inside = inside or (event == "call" and bool(hook) and frame.f_back is hook[0])
        if not inside or raised:
            return
        if left == 0:
            raised = True
            # No words make an error harmless.
            raise kind("the device is lost: out of memory, not initialised")
        left -= 1

    sys.setprofile(watch)
    try:
        call()
    except BaseException:  # it came through, as it is or as another
        return raised, False
    finally:
        sys.setprofile(None)
    return raised, raised
