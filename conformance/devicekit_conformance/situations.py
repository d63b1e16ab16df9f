"""The situations in which every hook is called. What holds of one call is asked of every call."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from devicekit_conformance import frozen_contract
from devicekit_conformance.calling import arguments_for
from devicekit_conformance.context import Failure, NotApplicable, NotRun
from devicekit_conformance.effects import effect_of
from devicekit_conformance.printing import printed
from devicekit_conformance.replaced import Replaced
from devicekit_conformance.surroundings import Surroundings
from devicekit_conformance.trial import Trial

__all__ = ["again", "beside", "fact", "first", "forked", "leaking", "on_every_device", "reentered"]

_DEVICES = 3  # at most so many are tried
_THREAD_LIMIT = 20.0  # seconds
_KEPT_BY_DRIVERS = frozenset({"memory_pool", "create_graph"})
_MOVES_MEMORY = frozenset(
    {"empty_cache", "collect_ipc", "memory_pool", "create_graph", "export_ipc", "import_ipc"}
)
_FACTS = frozenset(
    {
        "allocator_settings", "can_access_peer", "collective_backend", "copies_overlap", "device_count",
        "device_properties", "is_available", "priority_range", "profiler_activity", "supported_dtypes",
        "visible_devices_variable",
    }
)  # fmt: skip
_HUNDRED_LIMIT = 8.0  # seconds, for a hundred calls and ten of a slow hook on a busy machine
_AT_ONCE = 40  # calls of each of the threads that call at once
_PLACES = 60  # of the calls that a hook makes, at most so many are interrupted
# A leak of one in so many calls is one; memory is counted in KiB, of which a call may leave one behind.
_RARELY = {"objects": 5, "KiB of memory": 1}
_WINDOWS = 8  # so many rounds of calls must all leave something behind before it is a leak


def _in(trial: Trial, situation: str, **changes: Any) -> Trial:
    return dataclasses.replace(trial, situation=situation, **changes)


def _releases(trial: Trial) -> bool:
    return frozen_contract.hook(trial.hook).missing is frozen_contract.Missing.DO_NOTHING_AND_SAY_SO


def first(trial: Trial) -> None:
    """The first call that this process makes."""
    spec = frozen_contract.hook(trial.hook)
    if (
        spec.initialises is False
        and spec.missing
        is not frozen_contract.Missing.DO_NOTHING_AND_SAY_SO  # its first call has to have something to do
        and trial.ctx.probe.initialised() is False
        and spec.parameters in ((), ("index",))
    ):
        trial.call(*((trial.index,) if spec.parameters else ()))
        made = trial.ctx.probe.initialised()
        trial.expect(made is not True, "it initialised the device, which it must not")
    effect_of(trial.hook)(_in(trial, ""))
    trial.facts.extend(fact(trial))


def fact(trial: Trial) -> list[str]:
    """What the hook says, where that is the same in every process; nothing of hooks whose answers may change."""
    parameters = frozen_contract.hook(trial.hook).parameters
    if trial.hook not in _FACTS or parameters not in ((), ("index",)):
        return []
    return [repr(_sorted(trial.call(*((trial.index,) if parameters else ()))))]


def _sorted(answer: object) -> object:
    """Sets print in any order."""
    return sorted(answer, key=str) if isinstance(answer, frozenset) else answer


def again(trial: Trial) -> None:
    """Later calls, in other threads, with another stream current, and after what went wrong."""
    run = effect_of(trial.hook)
    arguments = arguments_for(trial)
    for number in range(4):
        run(_in(trial, f"in round {number + 1}"))
        if arguments is not None:
            told = _told(trial, arguments)
            _tells(_in(trial, f"after round {number + 1}"), arguments, told)
    for number in (1, 2):
        _in_thread(run, _in(trial, f"in thread {number + 1} of the process"))
    if arguments is not None:
        told = _told(trial, arguments)
        _in_thread(lambda one: _tells(one, arguments, told), _in(trial, "in another thread"))
    stream = trial.new_stream()
    if stream is not None:
        with trial.current(trial.index), trial.on(stream):
            run(_in(trial, "with another stream current"))
    _fail_once(trial)
    _in_thread(run, _in(trial, "in another thread, after a call that raised"))
    run(_in(trial, "after a call that raised"))
    trial.ctx.probe.exhaust(trial.index)
    trial.own("empty_cache")
    run(_in(trial, "after the device ran out of memory"))
    if arguments is not None:
        told = _told(trial, arguments)
        around = Surroundings(trial.ctx, trial.hook, trial.index)
        _repeat(trial, arguments, 110, _HUNDRED_LIMIT)
        changed = around.changes()
        if changed:
            _in(trial, "somewhere in a hundred calls").fail("; ".join(changed[:3]))
        _tells(_in(trial, "after a hundred calls"), arguments, told)
    else:
        _repeat_effect(trial, run)
    run(_in(trial, "after a hundred calls"))


def _told(trial: Trial, arguments: tuple[Any, ...]) -> str:
    """As much of an answer as cannot change from one moment to the next; nothing of hooks that do something."""
    if not frozen_contract.hook(trial.hook).only_looks:
        return ""
    found = trial.ctx.raw_hook(trial.hook)(*arguments)
    if trial.hook in _FACTS:
        return repr(_sorted(found))
    if dataclasses.is_dataclass(found):
        known = [one.name for one in dataclasses.fields(found) if getattr(found, one.name) is not None]
        return f"{', '.join(known) or 'nothing'}"
    return "nothing" if found is None or found in ((), [], {}, "") else "something"


def _tells(trial: Trial, arguments: tuple[Any, ...], before: str) -> None:
    now = _told(trial, arguments)
    trial.expect(now == before, f"it says {now:.100}, and said {before:.100} just before")


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
    thread.join(_THREAD_LIMIT)
    if thread.is_alive():
        trial.fail(f"did not return within {_THREAD_LIMIT:g} s")
    if raised:
        raise raised[0]


def _repeat(trial: Trial, arguments: tuple[Any, ...], calls: int, seconds: float) -> int:
    """Call the hook so many times, or for so long; returns how many times it was."""
    function = trial.ctx.raw_hook(trial.hook)
    ends = time.monotonic() + seconds
    done = 0
    while done < calls and (done < 4 or time.monotonic() < ends):
        try:
            function(*arguments)
        except (NotRun, NotApplicable):
            raise
        except Exception as error:
            trial.fail(f"call {done + 1} in a row raised {type(error).__name__}: {str(error)[:200]}")
        done += 1
    return done


def _repeat_effect(trial: Trial, run: Callable[[Trial], None]) -> None:
    """Call a hook so often that only its own effect can call."""
    ends, first, last = time.monotonic() + _HUNDRED_LIMIT, trial.calls[0], -1
    while last < trial.calls[0] < first + 110 and time.monotonic() < ends:
        last = trial.calls[0]  # an effect may have nothing to call it for
        run(_in(trial, "somewhere in a hundred calls", watched=False))


def _wrong_arguments(trial: Trial) -> tuple[Any, ...] | None:
    """Arguments that the hook should refuse; ``None`` where there are none."""
    spec = frozen_contract.hook(trial.hook)
    if not spec.parameters or trial.hook == "classify_error":
        return None
    if "index" in spec.parameters:
        if not trial.ctx.manifest.indexed:
            return None
        arguments = arguments_for(trial)
        place = spec.parameters.index("index")
        return None if arguments is None else (*arguments[:place], trial.count + 3, *arguments[place + 1 :])
    return tuple(object() for _ in spec.parameters)


def _fail_once(trial: Trial, times: int = 3) -> int:
    """Make the hook raise; returns how often it did. What it leaves behind then is a fault."""
    arguments = _wrong_arguments(trial)
    if arguments is None:
        return 0
    function, failed = trial.ctx.raw_hook(trial.hook), 0
    around = Surroundings(trial.ctx, "", trial.index)
    for _ in range(times):
        try:
            function(*arguments)
        except Exception:
            failed += 1
    changed = around.changes()
    if changed and failed:
        _in(trial, "when it raises").fail("; ".join(changed[:3]))
    return failed


def on_every_device(trial: Trial) -> None:
    """Every device, with every other one current; and devices that do not exist."""
    run = effect_of(trial.hook)
    chosen = sorted({*range(min(trial.count, _DEVICES - 1)), trial.count - 1})
    for index in reversed(chosen):
        for current in chosen:
            with trial.current(current):
                run(_in(trial, f"with device {current} current", index=index))
    _in_thread(run, _in(trial, "in a second thread", index=chosen[-1]))
    _at_once(trial, chosen)
    for current in chosen:
        with trial.current(current):
            _fail_once(_in(trial, f"with device {current} current"), 1)
    if not frozen_contract.hook(trial.hook).refuses:
        return
    for index in (trial.count, trial.count + 1000, -1, -7):
        arguments = _wrong_arguments(_in(trial, "", index=0))
        if arguments is None:
            return
        place = frozen_contract.hook(trial.hook).parameters.index("index")
        try:
            found = trial.ctx.raw_hook(trial.hook)(*arguments[:place], index, *arguments[place + 1 :])
        except Exception:
            continue
        looks = frozen_contract.hook(trial.hook).missing is frozen_contract.Missing.ANSWER_UNKNOWN
        if looks and (found is None or found in ([], ()) or _numberless(found)):
            continue  # it says nothing of it
        trial.fail(f"there is no device {index}, and it returned {found!r:.80}")


def _at_once(trial: Trial, chosen: list[int]) -> None:
    """Threads that ask for one device each, at the same time, are each told of their own."""
    spec = frozen_contract.hook(trial.hook)
    if len(chosen) < 2 or "index" not in spec.parameters or not spec.only_looks or trial.hook == "set_index":
        return
    place, arguments = spec.parameters.index("index"), arguments_for(_in(trial, "", index=0))
    if arguments is None:
        return
    kept = [trial.tensor((index + 1) << 20, index) for index in chosen]
    function, wrong = trial.ctx.raw_hook(trial.hook), list[str]()

    def ask(index: int) -> object:
        return printed(function(*arguments[:place], index, *arguments[place + 1 :]))

    alone = {index: ask(index) for index in chosen}

    def many(index: int) -> None:
        others = [alone[one] for one in chosen if one != index and alone[one] != alone[index]]
        try:
            for _ in range(_AT_ONCE):
                if ask(index) in others:
                    wrong.append(f"it answered for another device than {index}")
                    return
        except Exception as error:
            wrong.append(f"it raised {type(error).__name__}: {str(error)[:160]}")

    threads = [threading.Thread(target=many, args=(index,), daemon=True) for index in chosen]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_THREAD_LIMIT)
    finally:
        sys.setswitchinterval(interval)
    at_once = _in(trial, f"while {len(chosen)} threads asked for a device each")
    at_once.expect(not any(one.is_alive() for one in threads), f"did not return within {_THREAD_LIMIT:g} s")
    at_once.expect(not wrong, wrong[0] if wrong else "")
    del kept


def _numberless(found: object) -> bool:
    """Whether it is a record in which every number is unknown."""
    if not dataclasses.is_dataclass(found):
        return False
    values = [getattr(found, one.name) for one in dataclasses.fields(found)]
    return not [value for value in values if isinstance(value, int | float)]


def beside(trial: Trial) -> None:
    """Beside memory in use, freed memory that is cached, and pending work."""
    from devicekit_conformance.live import Live
    from devicekit_conformance.measures import BLOCK

    arguments = arguments_for(trial)
    if arguments is None:
        return
    spec = frozen_contract.hook(trial.hook)
    live = Live(trial)
    for _ in range(3 if frozen_contract.profile_of(trial.hook) == "memory" else 1):
        for index in range(trial.count):
            for stream in (None, *live.streams[index]):
                with trial.current(index), trial.on(stream):
                    cached = trial.tensor(2 * BLOCK, index)
                    del cached
        trial.finish()
        tokens = [
            (index, trial.long_work(stream, index))
            for index in range(trial.count)
            for stream in (None, *live.streams[index])
        ]
        before = _counts(trial)  # with the memory that the work itself takes
        pending = [(index, token) for index, token in tokens if token is not None and not token.done()]
        found = trial.ctx.raw_hook(trial.hook)(*arguments)
        if spec.only_looks:
            for index, token in pending:
                trial.expect(not token.done(), f"it waited for device {index}, and only looks")
            for name, (was, now) in _differences(before, _counts(trial)).items():
                trial.fail(f"it only looks, and {name} went from {was} to {now}")
        elif trial.hook not in _MOVES_MEMORY:
            for index in range(trial.count):
                was, now = before[f"what device {index} holds"], trial.ctx.probe.held(index)
                trial.expect(was == now, f"what device {index} holds went from {was} to {now}")
        after = {} if trial.hook == "reset_peak_memory_stats" else _counts(trial)
        for name, was in before.items():
            now = after.get(name) if ".peak of" in name else None
            fell = isinstance(was, int) and isinstance(now, int) and now < was
            trial.expect(
                not fell, f"{name} fell from {was} to {now}, and only reset_peak_memory_stats() resets it"
            )
        trial.finish()
        live.check("after it")
        del found
    over = [trial.tensor(2 * BLOCK // 16, index).fill_(1) for index in range(trial.count)]
    live.check("after it and new allocations")
    del over


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
    from devicekit_conformance.effects.forks import judge
    from devicekit_conformance.trying import in_a_child

    arguments = arguments_for(trial)
    block = trial.filled(4096, 7)
    told = None
    if arguments is not None and not frozen_contract.hook(trial.hook).creates:
        told = trial.ctx.raw_hook(trial.hook)(*arguments)
    child = _in(trial, "in a child forked after the device was used", watched=False)
    ended, said = in_a_child(trial.ctx, child, lambda one: judge(one, arguments, told), 10.0)
    del block
    if ended == "fail":
        raise Failure(said if "forked" in said else f"{said}, in a child forked after the device was used")


def leaking(trial: Trial) -> None:
    """Many calls in a row, and many that raise."""
    arguments = arguments_for(trial)
    gc.freeze()  # what is there already need not be looked through each time
    if (
        arguments is not None
        and trial.hook not in _KEPT_BY_DRIVERS
        and (trial.runtime is not None or trial.hook != "create_stream")
    ):
        _repeat(trial, arguments, 30, 1.0)
        objects = tuple(one for one in arguments if not isinstance(one, int | float | str | None))
        _keeps_nothing(trial, "", lambda: _repeat(trial, arguments, 150, 1.5), objects)
    if arguments is None:
        run = effect_of(trial.hook)
        run(trial)
        _keeps_nothing(trial, " with all that belongs to them", lambda: _use(trial, run), own_objects=True)
    used = trial.tensor(4096)  # many a hook refuses nothing before the device is used
    wrong = _wrong_arguments(trial)
    if wrong is not None and _fail_once(trial, 10):
        _keeps_nothing(trial, " that raise", lambda: _raise(trial, wrong, 150))
    del used


def _use(trial: Trial, run: Callable[[Trial], None]) -> int:
    """Run an effect some times; returns how many calls of the hook that were."""
    before = trial.calls[0]
    for _ in range(6):
        run(_in(trial, "", watched=False))
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


def reentered(trial: Trial) -> None:
    """Called while it runs, as a finalizer may that the collector runs in its middle."""
    arguments = arguments_for(trial)
    may_raise = arguments is None  # what changes something may refuse to do it twice
    if arguments is None:
        arguments = _seen_arguments(trial)
    if arguments is None:
        return
    function: Callable[..., object] = _quiet(trial) if may_raise else trial.ctx.raw_hook(trial.hook)
    unused = trial.ctx.probe.initialised() is False
    function(*arguments)
    if unused and frozen_contract.hook(trial.hook).initialises is False:
        made = trial.ctx.probe.initialised()
        trial.expect(made is not True, "it initialised the device, which it must not")
    for place in range(_PLACES):
        raised: list[BaseException] = []

        def call() -> None:
            try:
                function(*arguments)
            except BaseException as error:
                raised.append(error)  # noqa: B023  # called at once

        reached = _interrupted(lambda: function(*arguments), call, place)
        if raised:
            trial.fail(f"called while it runs, it raised {type(raised[0]).__name__}: {str(raised[0])[:200]}")
        if not reached:
            return


def _seen_arguments(trial: Trial) -> tuple[Any, ...] | None:
    """What the hook's own effect calls it with; ``None`` where it does not."""
    function, seen = trial.ctx.raw_hook(trial.hook), list[tuple[Any, ...]]()

    def noting(*arguments: Any) -> object:
        seen.append(arguments)
        return function(*arguments)

    effect_of(trial.hook)(_in(trial, "", ctx=Replaced(trial.ctx, trial.hook, noting), watched=False))
    return seen[-1] if seen else None


def _quiet(trial: Trial) -> Callable[..., object]:
    """The hook, without what it raises."""
    function = trial.ctx.raw_hook(trial.hook)

    def call(*arguments: object) -> None:
        with contextlib.suppress(Exception):
            function(*arguments)

    return call


def _interrupted(run: Callable[[], object], call: Callable[[], None], place: int) -> bool:
    """Run ``call`` out of one of the calls that the backend's own code makes inside ``run``."""
    hook: list[FrameType] = []
    left, done = place, False

    def watch(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left, done
        if event == "call" and not hook:
            if frame.f_code is not getattr(run, "__code__", None):
                hook.append(frame)
            return
        caller = frame if event == "c_call" else frame.f_back
        if (
            event not in ("call", "c_call")
            or not hook
            or done
            or caller is None
            or not _is_its_own(caller, hook[0])
        ):
            return
        if left == 0:
            done = True
            sys.setprofile(None)
            call()
        left -= 1

    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(None)
    return done


_NOT_ITS_OWN = ("/torch/", "/devicekit/", "/lib/python", "<frozen")


def _is_its_own(frame: FrameType, hook: FrameType) -> bool:
    return frame is hook or not any(part in frame.f_code.co_filename for part in _NOT_ITS_OWN)
