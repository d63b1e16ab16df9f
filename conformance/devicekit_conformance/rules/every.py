"""DK-EACH: every hook, in every situation that an engine may call it in.

One machinery tries them all, so a hook of a later contract is tried as soon as it is declared. In each profile the
requirements are the same; they differ in the hooks that they try.
"""

from __future__ import annotations

from collections.abc import Callable

from devicekit_conformance import frozen_contract
from devicekit_conformance.context import Context, NotApplicable, NotRun, fail
from devicekit_conformance.rulebook import requirement

_PROFILES = ("core", "memory", "streams", "host", "processes")
_LIMIT = 300.0  # seconds, for all hooks of a profile
# In the order of their numbers: the situation, its sentence, and why.
_SITUATIONS: tuple[tuple[str, str, str], ...] = (
    (
        "first",
        """The first call of a hook MUST do what the contract says, and leave the process and every device as it
        found them.""",
        """Each is called in a child that was forked before the device was used. Environment, folders, signals,
        threads, files, random states, defaults of Python, numpy and torch, the current device and streams are
        compared before and after.""",
    ),
    (
        "again",
        """Every later call of a hook MUST do what the first one did: in any thread, with another stream current,
        after a call that raised, after the device ran out of memory, and after a hundred calls.""",
        "",
    ),
    (
        "on_every_device",
        """A hook that takes an index MUST be about the device that it names, whichever is current, and refuse one
        that does not exist.""",
        "What it does on one device must not show on another.",
    ),
    (
        "beside",
        """A hook MUST leave memory in use as it is, on every device and stream, and one that only looks MUST NOT
        wait, allocate, empty a cache or reset a peak.""",
        "",
    ),
    (
        "forked",
        """In a child forked after the device was used, a hook MUST return or raise in time, and say what
        is so.""",
        """Presence is answered as in the parent, or the device is gone where it cannot be used; what cannot be
        known is unknown, and never 0.""",
    ),
    (
        "leaking",
        "A hook MUST NOT keep anything for each call, nor for each call that raises.",
        "Objects, open files, threads and blocks of device memory are counted.",
    ),
    (
        "reentered",
        "A hook MUST return when it is called while it runs, as a finalizer may.",
        "The garbage collector runs finalizers in the middle of anything.",
    ),
    (
        "after_all_others",
        """A hook MUST do what the contract says whatever other hooks were called before it, rightly or wrongly,
        and whatever errors they were shown.""",
        "What one hook remembers is no business of another.",
    ),
)


def _enter(number: int, profile: str, place: int, name: str, sentence: str, why: str) -> None:
    def check(ctx: Context) -> None:
        from devicekit_conformance import situations
        from devicekit_conformance.trying import try_each

        hooks = _hooks(ctx, profile, name)
        script: Callable[..., None] = getattr(situations, name)
        try_each(ctx, hooks, script, 15.0 if name == "reentered" else 60.0)

    check.__name__ = f"{profile}_hooks_{name}"
    check.__doc__ = " ".join(sentence.split()) + "\n\n" + " ".join(why.split())
    requirement(
        f"DK-EACH-{number}{place:02d}",
        profile=profile,
        isolated=_LIMIT,
        device=False,
        after=("DK-CORE-002", "DK-ORDER-001", *((f"DK-EACH-{number}01",) if place > 1 else ())),
        every=True,
    )(check)


def _enter_programs(id: str, profile: str, sentence: str, why: str, programs: int, of: str | None) -> None:
    def check(ctx: Context) -> None:
        from devicekit_conformance.programs import draw, fault_of
        from devicekit_conformance.trying import warm_up

        judged = _hooks(ctx, of, "in_any_order")
        warm_up()
        ctx.first_use  # noqa: B018  # found out while nothing has used the device
        for number in range(programs):
            steps = draw(judged, sorted(ctx.implemented), ctx.device_count, f"{profile} {number}")
            fault = fault_of(ctx, steps)
            if fault is not None:
                fail(fault)

    check.__name__ = f"{profile}_hooks_in_any_order"
    check.__doc__ = " ".join(sentence.split()) + "\n\n" + " ".join(why.split())
    requirement(
        id,
        profile=profile,
        isolated=_LIMIT,
        device=False,
        after=("DK-CORE-002", "DK-ORDER-001", "DK-EACH-101"),
        every=True,
    )(check)


def _hooks(ctx: Context, profile: str | None, situation: str) -> list[str]:
    if ctx.device_count == 0:
        raise NotRun("there is no device on this machine")
    mine = [name for name in sorted(ctx.implemented) if profile in (None, frozen_contract.profile_of(name))]
    if situation == "on_every_device":
        if not ctx.manifest.indexed:
            raise NotApplicable("this backend has one device, which has no index")
        mine = [name for name in mine if frozen_contract.hook(name).names_a_device]
    if ctx.focus is not None:
        mine = [name for name in mine if name in ctx.focus]
    if not mine:
        raise NotApplicable("the backend implements no such hook")
    return mine


for _number, _profile in enumerate(_PROFILES, 1):
    for _place, (_name, _sentence, _why) in enumerate(_SITUATIONS, 1):
        _enter(_number, _profile, _place, _name, _sentence, _why)
    _enter_programs(
        f"DK-EACH-{_number}09",
        _profile,
        """Hooks MUST do what the contract says in any order, in any thread and on any device, and leave alone what
        others made.""",
        """A program is drawn from all of them, the same one each time: work, plain calls, calls that are refused,
        memory that runs out, and streams, events, graphs, pools, settings and answers that are kept meanwhile. A
        failure names the shortest part of it that fails.""",
        1,
        _profile,
    )
_enter_programs(
    "DK-EACH-609",
    "hardware",
    "Hooks of all profiles MUST do what the contract says in any order, as in long programs of all of them.",
    "What is rare is seen in none that is short.",
    6,
    None,
)
