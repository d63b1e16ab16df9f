"""Which call: the first only, each third, after so many, after an exception, out of another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

from devicekit.contract.hooks import HOOKS
from devicekit_conformance.selftest.building import Body, Call, Unmakeable, faulty, neutral
from devicekit_conformance.selftest.operators import Fault, operator, sentence
from devicekit_conformance.selftest.operators.threads import SAME_WHEN_NEUTRAL

# The honest backend raises nothing here, whatever it is given.
NEVER_RAISE = frozenset(
    {"classify_error", "is_capturing", "copies_overlap", "supported_dtypes", "priority_range", "submit_work"}
)


def _neutral_when(when: Callable[[int], bool]) -> Iterator[Fault]:
    def body(hook: str) -> Body:
        return lambda call: neutral(hook) if when(call.number) else call.forward()

    for hook in HOOKS:
        if hook in SAME_WHEN_NEUTRAL or hook == "is_capturing":
            continue
        try:
            neutral(hook)
        except Unmakeable:
            continue
        yield Fault(hook, "", sentence(hook), partial(faulty, {hook: body(hook)}))


def _raises_when(when: Callable[[int], bool]) -> Iterator[Fault]:
    def body(call: Call) -> object:
        if when(call.number):
            raise RuntimeError("the command queue is confused")
        return call.forward()

    for hook in HOOKS:
        yield Fault(hook, "", sentence(hook), partial(faulty, {hook: body}))


@operator("call")
def only_the_first_call_works() -> Iterator[Fault]:
    """From the second call on, a hook does nothing, or answers 0."""
    return _neutral_when(lambda number: number > 1)


@operator("call")
def the_first_call_does_nothing() -> Iterator[Fault]:
    """The first call does nothing, or answers 0."""
    return _neutral_when(lambda number: number == 1)


@operator("call")
def each_third_call_does_nothing() -> Iterator[Fault]:
    """Each third call does nothing, or answers 0."""
    return _neutral_when(lambda number: number % 3 == 0)


@operator("call")
def the_third_call_does_nothing() -> Iterator[Fault]:
    """The third call alone does nothing, or answers 0."""
    return _neutral_when(lambda number: number == 3)


@operator("call")
def nothing_after_the_hundredth_call() -> Iterator[Fault]:
    """After a hundred calls, a hook does nothing, or answers 0."""
    return _neutral_when(lambda number: number > 100)


@operator("call")
def the_third_call_raises() -> Iterator[Fault]:
    """The third call raises."""
    return _raises_when(lambda number: number == 3)


@operator("call")
def raises_after_the_hundredth_call() -> Iterator[Fault]:
    """After a hundred calls, a hook raises."""
    return _raises_when(lambda number: number > 100)


@operator("call")
def answers_are_remembered() -> Iterator[Fault]:
    """A hook gives its first answer for ever."""

    def body(call: Call) -> object:
        key = repr(call.arguments)
        if key not in call.memory:
            call.memory[key] = call.forward()
        return call.memory[key]

    for hook in ("current_index", "current_stream", "is_capturing", "memory_stats", "memory_info",
                 "process_memory",
                 "host_memory_stats", "memory_snapshot", "get_rng_state", "create_stream", "create_event",
                 "create_graph", "memory_pool"):  # fmt: skip
        yield Fault(hook, "", sentence(hook), partial(faulty, {hook: body}))


@operator("call")
def answers_are_one_call_late() -> Iterator[Fault]:
    """A hook gives the answer to the question before."""

    def body(call: Call) -> object:
        now = call.forward()
        before = call.memory.get(repr(call.arguments), now)
        call.memory[repr(call.arguments)] = now
        return before

    for hook in ("current_index", "current_stream", "is_capturing", "memory_stats", "memory_info",
                 "process_memory",
                 "host_memory_stats", "memory_snapshot", "get_rng_state"):  # fmt: skip
        yield Fault(hook, "", sentence(hook), partial(faulty, {hook: body}))


@operator("call")
def an_exception_breaks_it_for_good() -> Iterator[Fault]:
    """Once a hook has raised, it raises for ever."""

    def body(call: Call) -> object:
        if call.memory.get("broken"):
            raise RuntimeError("an earlier call failed")
        try:
            return call.forward()
        except Exception:
            call.memory["broken"] = True
            raise

    for hook in HOOKS:
        if HOOKS[hook].parameters and hook not in NEVER_RAISE:
            yield Fault(hook, "", sentence(hook), partial(faulty, {hook: body}))


@operator("call")
def an_exception_silences_it() -> Iterator[Fault]:
    """Once a hook has raised, it does nothing any more."""

    def body(hook: str) -> Body:
        def silenced(call: Call) -> object:
            if call.memory.get("broken"):
                return neutral(hook)
            try:
                return call.forward()
            except Exception:
                call.memory["broken"] = True
                raise

        return silenced

    for hook in HOOKS:
        if not HOOKS[hook].parameters or hook in NEVER_RAISE:
            continue
        try:
            neutral(hook)
        except Unmakeable:
            continue
        yield Fault(hook, "", sentence(hook), partial(faulty, {hook: body(hook)}))


@operator("call")
def running_out_breaks_it() -> Iterator[Fault]:
    """Once the device ran out of memory, a hook raises."""

    def body(call: Call) -> object:
        found = call.forward()
        from devicekit_conformance.selftest.honest import machine

        if any(device.allocator.counters.num_ooms for device in machine().devices):
            raise RuntimeError("the device ran out of memory before")
        return found

    for hook in ("memory_stats", "memory_info", "synchronize", "empty_cache", "create_stream", "create_event",
                 "get_rng_state", "device_properties", "memory_snapshot", "manual_seed"):  # fmt: skip
        yield Fault(hook, "", sentence(hook), partial(faulty, {hook: body}))


@operator("call")
def cannot_be_called_from_a_finalizer() -> Iterator[Fault]:
    """A hook that is called while it runs, as a finalizer may, waits for itself."""

    def locking() -> Body:
        lock = threading.Lock()

        def body(call: Call) -> object:
            with lock:
                return call.forward()

        return body

    told = "Hooks may be called from finalizers, and so while another hook of the same thread runs."
    for hook in HOOKS:
        yield Fault(hook, "", told, partial(faulty, {hook: locking()}))


@operator("call")
def one_record_for_all() -> Iterator[Fault]:
    """A hook returns one object each time and changes it."""

    def body(call: Call) -> object:
        found = call.forward()
        if isinstance(found, list):
            kept = call.memory.setdefault("kept", [])
            kept[:] = found
            return kept
        kept = call.memory.setdefault("kept", found)
        if hasattr(found, "__dataclass_fields__"):
            for name in found.__dataclass_fields__:
                object.__setattr__(kept, name, getattr(found, name))
        elif hasattr(found, "copy_"):
            kept.copy_(found)
        return kept

    for hook in ("memory_stats", "memory_info", "host_memory_stats", "process_memory", "memory_snapshot",
                 "get_rng_state"):  # fmt: skip
        yield Fault(hook, "", sentence(hook), partial(faulty, {hook: body}))
