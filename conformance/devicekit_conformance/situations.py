"""The situations in which every hook is called. What holds of one call is asked of every call."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from devicekit_conformance import frozen_contract
from devicekit_conformance.anywhere import call_all_others, initialises_nothing, same_for_all, try_all_others
from devicekit_conformance.calling import arguments_for
from devicekit_conformance.capturing import while_capturing
from devicekit_conformance.context import Failure, NotRun
from devicekit_conformance.effects import effect_of
from devicekit_conformance.leaks import leaking
from devicekit_conformance.measures import BLOCK, block_of
from devicekit_conformance.printing import printed
from devicekit_conformance.probe import Token
from devicekit_conformance.reentering import reentered
from devicekit_conformance.repeated import fail_once, repeat, within, wrong_arguments
from devicekit_conformance.replaced import Replaced
from devicekit_conformance.silence import says_nothing
from devicekit_conformance.surroundings import Surroundings
from devicekit_conformance.telling import FACTS, fact, in_order, tells, told_everywhere, told_of
from devicekit_conformance.trial import Trial
from devicekit_conformance.whereabouts import held_up
from devicekit_conformance.worlds import same_in_every_mode, same_in_every_world, worlds

__all__ = [
    "after_all_others",
    "again",
    "beside",
    "first",
    "forked",
    "leaking",
    "on_every_device",
    "reentered",
]

_COMPARED = frozenset({"manual_seed"})  # whose effect remembers what it was before
_COUNTED = ("num_ooms of", "num_alloc_retries of")  # which only an allocation changes
_SEEDING = frozenset({"manual_seed", "set_rng_state"})
_DEVICES = 3  # at most so many are tried
_MOVES_MEMORY = frozenset(
    {"empty_cache", "collect_ipc", "memory_pool", "create_graph", "export_ipc", "import_ipc"}
)
_HUNDRED_LIMIT = 8.0  # seconds, for a hundred calls and ten of a slow hook on a busy machine
_ONCE = frozenset({"register_host_memory", "unregister_host_memory"})  # refused the second time
_CALLS = 4  # of a hook in a process in which it was not called before, at least
_USES = 24  # of what a hook makes, from its making to its end
_AT_ONCE = 40  # calls of each of the threads that call at once
_ALONE = 8  # calls that nothing disturbs, to see whether an answer moves by itself


def _releases(trial: Trial) -> bool:
    return frozen_contract.hook(trial.hook).missing is frozen_contract.Missing.DO_NOTHING_AND_SAY_SO


def first(trial: Trial) -> None:
    """The first call that this process makes."""
    spec = frozen_contract.hook(trial.hook)
    if not spec.names_a_device:
        # Who does not look says 0. Hooks that name a device are called about another one first `on_every_device`.
        trial = within(trial, "", index=max(0, trial.count - 1))
    if spec.quiet and not _releases(trial) and trial.ctx.probe.initialised() is False:
        # What releases has to have something to do when it is called first.
        arguments = arguments_for(trial)
        if arguments is not None and trial.ctx.probe.initialised() is False:
            trial.call(*arguments)
            made = trial.ctx.probe.initialised()
            trial.expect(made is not True, "it initialised the device, which it must not")
    effect_of(trial.hook)(within(trial, ""))
    for _ in range(_CALLS - trial.calls[0]):  # later ones are not watched as closely
        effect_of(trial.hook)(within(trial, "once more"))
    trial.facts.extend(fact(trial))


def again(trial: Trial) -> None:
    """Later calls, in other threads, with another stream current, and after what went wrong."""
    run = effect_of(trial.hook)
    initialises_nothing(trial)
    arguments = arguments_for(trial)
    if frozen_contract.hook(trial.hook).initialises:
        _unsettle(trial)
    for number in range(4):
        run(within(trial, f"in round {number + 1}"))
        if arguments is not None:
            told = told_of(trial, arguments)
            tells(within(trial, f"after round {number + 1}"), arguments, told)
    for number in (1, 2):
        _in_thread(run, within(trial, f"in thread {number + 1} of the process"))
    if arguments is not None:
        told = told_of(trial, arguments)
        _in_thread(lambda one: tells(one, arguments, told), within(trial, "in another thread"))
        used = trial.tensor(BLOCK)  # so that there is something to tell
        same_for_all(trial, arguments)
        if trial.hook in FACTS:
            given = arguments
            same_in_every_world(trial, lambda: repr(in_order(trial.ctx.raw_hook(trial.hook)(*given))))
        if frozen_contract.hook(trial.hook).only_looks and trial.hook != "set_index":
            same_in_every_mode(trial, partial(trial.ctx.raw_hook(trial.hook), *arguments))
        told = told_of(trial, arguments)
        fail_once(trial)
        tells(within(trial, "after a call that raised"), arguments, told)
        del used
    if frozen_contract.hook(trial.hook).returns == ("NoneType",) and trial.hook not in _ONCE:
        run(within(trial, "with each call made twice", ctx=_twice(trial)))
    stream = trial.new_stream()
    if stream is not None:
        with trial.current(trial.index), trial.on(stream):
            run(within(trial, "with another stream current"))
    for name, world in worlds(trial):
        with world:
            run(within(trial, name))
    while_capturing(trial)
    fail_once(trial)
    _in_thread(run, within(trial, "in another thread, after a call that raised"))
    run(within(trial, "after a call that raised"))
    for index in range(trial.count):
        trial.ctx.probe.exhaust(index)
    trial.own("empty_cache")
    run(within(trial, "after the device ran out of memory"))
    if arguments is not None:
        told = told_of(trial, arguments)
        around = Surroundings(trial.ctx, trial.hook, trial.index)
        repeat(trial, arguments, 110, _HUNDRED_LIMIT)
        changed = around.changes()
        if changed:
            within(trial, "somewhere in a hundred calls").fail("; ".join(changed[:3]))
        tells(within(trial, "after a hundred calls"), arguments, told)
        _use_often(trial)
    else:
        _repeat_effect(trial, run)
    run(within(trial, "after a hundred calls"))


def _twice(trial: Trial) -> Any:
    """The context, in which each call of the hook is made again at once: what is so already stays so."""
    function = trial.ctx.raw_hook(trial.hook)

    def call(*arguments: object) -> object:
        function(*arguments)
        return function(*arguments)

    return Replaced(trial.ctx, trial.hook, call)


def _unsettle(trial: Trial) -> None:
    """Take the random states off their beginning: who puts one back there is not seen otherwise."""
    for index in range(trial.count):
        with contextlib.suppress(NotRun):
            trial.ctx.probe.random(index, 3)


def after_all_others(trial: Trial) -> None:
    """After every other hook was called, with errors of every kind seen."""
    # What is told before the device is used is something else; what is of one device is not of another.
    used = [trial.tensor((3 + index) << 20, index) for index in range(trial.count)]
    if trial.hook in _COMPARED:
        effect_of(trial.hook)(within(trial, "before every other hook was called", watched=False))
    arguments = arguments_for(trial)
    told = [] if arguments is None else told_everywhere(trial, arguments)
    call_all_others(trial)
    after = within(trial, "after every other hook was called", watched=False)
    for was, now in zip(told, [] if arguments is None else told_everywhere(trial, arguments), strict=True):
        after.expect(now == was, f"it says {now:.100}, and said {was:.100} just before")
    effect_of(trial.hook)(after)
    del used


def _in_thread(run: Callable[[Trial], None], trial: Trial) -> None:
    raised: list[BaseException] = []

    def target() -> None:
        try:
            run(trial)
        except BaseException as error:
            raised.append(error)

    # Surroundings know the threads that there are: this one must not come between two looks.
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    late = held_up(thread)
    trial.expect(not late, late)
    if raised:
        raise raised[0]


def _use_often(trial: Trial) -> None:
    """What the hook makes is used and ended as often; it is as good as the first, and leaves as little."""
    from devicekit_conformance.keeping import keep

    if not frozen_contract.hook(trial.hook).creates:
        return
    ends = time.monotonic() + _HUNDRED_LIMIT
    for number in range(_USES):
        used = within(trial, f"when what it makes is used for the {number + 1}. time", watched=False)
        around = Surroundings(trial.ctx, trial.hook, trial.index, thorough=False)
        kept = keep(used)
        if kept is None:
            return
        kept.finish()
        changed = around.changes()
        used.expect(not changed, "; ".join(changed[:3]))
        if time.monotonic() > ends:
            return


def _repeat_effect(trial: Trial, run: Callable[[Trial], None]) -> None:
    """Call a hook so often that only its own effect can call."""
    ends, first, last = time.monotonic() + _HUNDRED_LIMIT, trial.calls[0], -1
    while last < trial.calls[0] < first + 110 and time.monotonic() < ends:
        last = trial.calls[0]  # an effect may have nothing to call it for
        run(within(trial, "somewhere in a hundred calls", watched=False))


def on_every_device(trial: Trial) -> None:
    """Every device, with every other one current; and devices that do not exist."""
    run = effect_of(trial.hook)
    chosen = sorted({*range(min(trial.count, _DEVICES - 1)), trial.count - 1})
    with trial.current(chosen[0]), contextlib.ExitStack() as streams:
        for index in reversed(chosen):
            streams.enter_context(trial.on(trial.new_stream(index)))
        run(within(trial, "with a new stream of each device current", index=chosen[-1]))
    if len(chosen) > 1 and trial.ctx.claims("streams") and trial.has("use_stream"):
        with trial.other("use_stream", trial.new_stream(chosen[-1])):
            run(within(trial, f"in a block of use_stream() of device {chosen[-1]}", index=chosen[0]))
    for index in reversed(chosen):
        for current in chosen:
            with trial.current(current):
                run(within(trial, f"with device {current} current", index=index))
                _with_nothing_to_do(within(trial, f"called again with device {current} current", index=index))
    last = within(trial, "", index=chosen[-1])
    _in_thread(run, within(last, "in a second thread"))
    arguments = arguments_for(last)
    if arguments is not None:
        same_for_all(last, arguments)
    _at_once(trial, chosen)
    for current in chosen:
        with trial.current(current):
            fail_once(within(trial, f"with device {current} current"), 1)
    if not frozen_contract.hook(trial.hook).refuses:
        return
    for index in (trial.count, trial.count + 1000, -1, -7):
        arguments = wrong_arguments(within(trial, "", index=0))
        if arguments is None:
            return
        place = frozen_contract.hook(trial.hook).parameters.index("index")
        try:
            found = trial.ctx.raw_hook(trial.hook)(*arguments[:place], index, *arguments[place + 1 :])
        except Exception:
            continue
        if not says_nothing(trial.hook, found):
            trial.fail(f"there is no device {index}, and it returned {found!r:.80}")


def _with_nothing_to_do(trial: Trial) -> None:
    """What ran before has done all that there was to do."""
    arguments = arguments_for(trial)
    if arguments is not None and trial.hook != "set_current_stream":  # whose call would last
        trial.finish()
        trial.call(*arguments)


def _at_once(trial: Trial, chosen: list[int]) -> None:
    """Threads that ask for one device each, at the same time, are each told of their own."""
    spec = frozen_contract.hook(trial.hook)
    if len(chosen) < 2 or "index" not in spec.parameters or not spec.only_looks or trial.hook == "set_index":
        return
    place, arguments = spec.parameters.index("index"), arguments_for(within(trial, "", index=0))
    if arguments is None:
        return
    kept = [trial.tensor((index + 1) << 20, index) for index in chosen]
    function, wrong = trial.ctx.raw_hook(trial.hook), list[str]()

    def ask(index: int) -> str:
        return repr(printed(function(*arguments[:place], index, *arguments[place + 1 :])))

    def asked_alone() -> dict[int, set[str]]:
        """What each device answers, often enough to see what moves by itself: other processes take memory."""
        return {index: {ask(index) for _ in range(_ALONE)} for index in chosen}

    alone, strange = asked_alone(), list[tuple[int, str]]()

    def many(index: int) -> None:
        others = set[str]().union(*(alone[one] for one in chosen)) - alone[index]
        try:
            for _ in range(_AT_ONCE):
                if (found := ask(index)) in others:
                    strange.append((index, found))
                    return
        except Exception as error:
            wrong.append(f"it raised {type(error).__name__}: {str(error)[:160]}")

    threads = [threading.Thread(target=many, args=(index,), daemon=True) for index in chosen]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        late = held_up(*threads)
    finally:
        sys.setswitchinterval(interval)
    afterwards = asked_alone() if strange else {}
    wrong += [
        f"it answered for another device than {index}"
        for index, found in strange
        if found not in afterwards[index] and len(alone[index]) == 1
    ]
    at_once = within(trial, f"while {len(chosen)} threads asked for a device each")
    at_once.expect(not late, late)
    at_once.expect(not wrong, wrong[0] if wrong else "")
    del kept


def beside(trial: Trial) -> None:
    """Beside memory in use, freed memory that is cached, pending work, and what was set for good."""
    from devicekit_conformance.lasting import Lasting
    from devicekit_conformance.live import Live

    arguments = arguments_for(trial)
    if arguments is None:
        return
    spec = frozen_contract.hook(trial.hook)
    live, lasting = Live(trial), Lasting(trial)
    variants = [arguments]
    if "enabled" in spec.parameters:
        variants.insert(0, (*arguments[:-1], True))  # on, and then off again
    if "priority" in spec.parameters:
        variants.append((*arguments[:1], -1, *arguments[2:]))
    trial.ctx.probe.exhaust(trial.index)  # so that there is something counted
    _unsettle(trial)
    random = (
        None if trial.hook in _SEEDING else [trial.own("get_rng_state", one) for one in range(trial.count)]
    )
    for _ in range(3 if frozen_contract.profile_of(trial.hook) == "memory" else 1):
        for index in range(trial.count):
            for stream in (None, *live.streams[index]):
                with trial.current(index), trial.on(stream):
                    cached = trial.tensor(2 * block_of(trial, index), index)
                    del cached
        trial.finish()
        tokens = [
            (index, trial.long_work(stream, index))
            for index in range(trial.count)
            for stream in (None, *live.streams[index])
        ]
        waiting = _leave_one_to_a_stream(trial, live.streams[trial.index])
        before = _counts(trial)  # with the memory that the work itself takes
        pending = [(index, token) for index, token in tokens if token is not None and not token.done()]
        found = [trial.ctx.raw_hook(trial.hook)(*given) for given in variants]
        if spec.only_looks:
            for index, token in pending:
                trial.expect(not token.done(), f"it waited for device {index}, and only looks")
            for name, (was, now) in _differences(before, _counts(trial)).items():
                trial.fail(f"it only looks, and {name} went from {was} to {now}")
        elif trial.hook not in _MOVES_MEMORY:
            for index in range(trial.count):
                was, now = before[f"what device {index} holds"], trial.ctx.probe.held(index)
                trial.expect(was == now, f"what device {index} holds went from {was} to {now}")
        if waiting is not None and not waiting.done():
            name = f"active_bytes.all.current of device {trial.index}"
            was, now = before.get(name), _counts(trial).get(name)
            told = f"{name} went from {was} to {now}, and a stream still uses what was freed"
            trial.expect(not isinstance(was, int) or not isinstance(now, int) or now >= was, told)
        after = {} if trial.hook == "reset_peak_memory_stats" else _counts(trial)
        for name, was in before.items():
            now = after.get(name) if ".peak of" in name else None
            fell = isinstance(was, int) and isinstance(now, int) and now < was
            trial.expect(
                not fell, f"{name} fell from {was} to {now}, and only reset_peak_memory_stats() resets it"
            )
            counted = name.startswith(_COUNTED) and name in after
            trial.expect(not counted or after[name] == was, f"{name} went from {was} to {after.get(name)}")
        trial.finish()
        live.check("after it")
        for index, state in enumerate(random or ()):
            now = trial.own("get_rng_state", index)
            same = state is None or now is None or bool((state == now).all())
            trial.expect(same, f"the random state of device {index} changed")
        del found
    over = [trial.tensor(2 * BLOCK // 16, index).fill_(1) for index in range(trial.count)]
    live.check("after it and new allocations")
    del over
    lasting.check("after it")


def _leave_one_to_a_stream(trial: Trial, streams: list[Any]) -> Token | None:
    """Free a block that a stream was said to use, which works; its work, or ``None`` where that cannot be said."""
    if not trial.ctx.claims("caching_allocator"):
        return None  # it goes back as soon as somebody has waited
    for stream in streams:
        block = trial.tensor(BLOCK)
        try:
            block.record_stream(stream)
        except (RuntimeError, NotImplementedError, TypeError):
            return None
        token = trial.long_work(stream)
        del block
        return token
    return None


def _counts(trial: Trial) -> dict[str, object]:
    """What torch itself counts on every device."""
    found: dict[str, object] = {}
    for index in range(trial.count):
        found[f"what device {index} holds"] = trial.ctx.probe.held(index)
        own = trial.own("memory_stats", index)
        if isinstance(own, dict):
            found.update((f"{name} of device {index}", value) for name, value in own.items())
    return found


def _differences(before: dict[str, object], after: dict[str, object]) -> dict[str, tuple[object, object]]:
    return {name: (value, after.get(name)) for name, value in before.items() if after.get(name) != value}


def forked(trial: Trial) -> None:
    """A child that is forked after the device was used."""
    from devicekit_conformance.effects.forks import judge, locked_memory

    arguments = arguments_for(trial)
    # What the parent has, a child cannot have: with nothing there, nothing and unknown look alike.
    block, locked = trial.filled(4096, 7), locked_memory(trial)
    told = None
    if arguments is not None and not frozen_contract.hook(trial.hook).creates:
        told = trial.ctx.raw_hook(trial.hook)(*arguments)
    whose = "in a child forked after the device was used"
    child = within(trial, whose, watched=False)
    grandchild = within(trial, f"in a child of {whose[3:]}", watched=False)

    def both(one: Trial) -> None:
        judge(one, arguments, told)
        second = within(one, f"in a second thread of {whose[3:]}")
        one.in_a_thread(lambda: judge(second, arguments, told if trial.hook != "telemetry" else None))
        try_all_others(one)
        later = None if trial.hook == "telemetry" else told  # which moves by itself
        judge(within(one, f"{whose}, after every other hook was tried there"), arguments, later)
        _in_its_child(grandchild, lambda next: judge(next, arguments, later), 8.0)

    _in_its_child(child, both, 10.0)
    del block, locked


def _in_its_child(trial: Trial, script: Callable[[Trial], None], limit: float) -> None:
    from devicekit_conformance.trying import in_a_child

    ended, said = in_a_child(trial.ctx, trial, script, limit)
    if ended == "fail":
        raise Failure(said if "forked" in said else f"{said}, {trial.situation}")
