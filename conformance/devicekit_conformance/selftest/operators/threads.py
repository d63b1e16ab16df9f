"""Which thread: right in the first one only."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

from devicekit.contract.hooks import HOOKS
from devicekit_conformance.selftest.building import Body, Call, Unmakeable, faulty, neutral
from devicekit_conformance.selftest.honest import machine
from devicekit_conformance.selftest.operators import Fault, operator, sentence

# Doing nothing, or answering nothing, is what the honest backend does here as well.
SAME_WHEN_NEUTRAL = frozenset({"collect_ipc", "is_bad_fork", "submit_work", "visible_devices_variable"})


def elsewhere() -> bool:
    return threading.current_thread() is not threading.main_thread()


@operator("thread")
def other_threads_get_nothing() -> Iterator[Fault]:
    """In another thread a hook does nothing, or answers 0."""

    def body(hook: str) -> Body:
        return lambda call: neutral(hook) if elsewhere() else call.forward()

    for hook in HOOKS:
        if hook in SAME_WHEN_NEUTRAL or hook == "is_capturing":
            continue
        try:
            neutral(hook)
        except Unmakeable:
            continue
        yield Fault(hook, "", sentence(hook), partial(faulty, {hook: body(hook)}))


@operator("thread")
def other_threads_are_refused() -> Iterator[Fault]:
    """In another thread a hook raises."""

    def body(call: Call) -> object:
        if elsewhere():
            raise RuntimeError("this belongs to the thread that loaded it")
        return call.forward()

    for hook in HOOKS:
        yield Fault(hook, "", sentence(hook), partial(faulty, {hook: body}))


@operator("thread")
def other_threads_get_the_firsts_answer() -> Iterator[Fault]:
    """Another thread is given what the first one was answered last."""

    def body(call: Call) -> object:
        if elsewhere() and "last" in call.memory:
            return call.memory["last"]
        found = call.forward()
        if not elsewhere():
            call.memory["last"] = found
        return found

    for hook in ("current_index", "current_stream", "memory_stats", "memory_info", "memory_snapshot",
                 "get_rng_state",
                 "create_stream", "create_event", "host_memory_stats", "process_memory"):  # fmt: skip
        yield Fault(hook, "", sentence(hook), partial(faulty, {hook: body}))


@operator("thread")
def selection_is_everyones() -> Iterator[Fault]:
    """One thread's choice is every thread's."""
    chosen = {"index": 0}

    def choose(call: Call) -> None:
        call.forward()
        chosen["index"] = call.arguments[0]

    def current(call: Call) -> object:
        return chosen["index"]

    told = sentence("current_index")
    yield Fault("current_index", "", told, partial(faulty, {"set_index": choose, "current_index": current}))
    streams: dict[int, object] = {}

    class Use:
        def __init__(self, stream: object) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            index = self.stream.device_index  # type: ignore[attr-defined]
            self.before = streams.get(index), machine().current_stream(index)
            streams[index] = self.stream
            machine().set_stream(self.stream)  # type: ignore[arg-type]

        def __exit__(self, *exc: object) -> None:
            index = self.stream.device_index  # type: ignore[attr-defined]
            was, own = self.before
            machine().set_stream(own)
            if was is None:
                streams.pop(index, None)
            else:
                streams[index] = was

    def current_stream(call: Call) -> object:
        found = call.forward()
        return streams.get(call.arguments[0], found)

    yield Fault(
        "current_stream",
        "",
        sentence("current_stream"),
        partial(
            faulty, {"use_stream": lambda call: Use(call.arguments[0]), "current_stream": current_stream}
        ),
    )
