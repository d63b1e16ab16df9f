"""Around captures and waits: the second one, the long one, the one of another device, and what they leave."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from devicekit.contract import AllocatorState, MemoryStats
from devicekit.contract.hooks import HOOKS
from devicekit_conformance.selftest.building import Call, faulty
from devicekit_conformance.selftest.honest import Honest, machine
from devicekit_conformance.selftest.operators import Fault, operator
from devicekit_conformance.selftest.operators.handles import changed_handles

Method = Callable[..., Any]


def _places(hook: str, changes: Mapping[str, tuple[str, Callable[[Method], Method]]]) -> Iterator[Fault]:
    for variant, (method, change) in changes.items():
        yield Fault(hook, variant, HOOKS[hook].doc, partial(changed_handles, hook, method, change))


@operator("handle")
def a_capture_is_not_whole() -> Iterator[Fault]:
    """A capture ends early, runs on, or leaves something behind."""

    def around(after: Callable[[Any], None], inside: Callable[[Any], None] = lambda graph: None) -> Any:
        def change(honest: Method) -> Method:
            @contextlib.contextmanager
            def capture(self: Any) -> Iterator[None]:
                with honest(self):
                    yield
                    inside(self)
                after(self)

            return capture

        return change

    def stays(graph: Any) -> None:
        graph._device.use_pool(graph._pool)

    def remember(graph: Any) -> None:
        graph.drawn = graph._device.generator.get_state()

    def draw(graph: Any) -> None:
        graph._device.generator.set_state(graph.drawn)

    def shorten(graph: Any) -> None:
        del graph._steps[16:]

    def silent(honest: Method) -> Method:
        return lambda self: honest(self) if self._pool is not None else None

    def kept(honest: Method) -> Method:
        def reset(self: Any) -> None:
            steps = list(self._steps) if self._shared._users > 1 or getattr(self, "again", False) else []
            honest(self)
            self._steps.extend(steps)
            self.again = True

        return reset

    yield from _places(
        "create_graph",
        {
            "sixteen_steps": ("capture", around(shorten)),
            "its_pool_serves_on": ("capture", around(stays)),
            "numbers_are_drawn": ("capture", around(draw, remember)),
            "nothing_is_replayed_in_silence": ("replay", silent),
            "what_was_captured_stays": ("reset", kept),
        },
    )


@operator("release")
def a_graphs_pool_is_ignored_or_kept() -> Iterator[Fault]:
    """A capture has a pool of its own whatever it is given; or a pool lasts while somebody holds it."""

    def own(call: Call) -> object:
        return call.honest(call.arguments[0])

    def held(call: Call) -> object:
        made: Any = call.forward()
        made.enter()
        kind = type(made)
        made.__class__ = type(kind.__name__, (kind,), {"__del__": lambda self: self.leave()})
        return made

    yield Fault("create_graph", "ignored", HOOKS["create_graph"].doc, partial(faulty, {"create_graph": own}))
    yield Fault("graph_pool", "held", HOOKS["graph_pool"].doc, partial(faulty, {"graph_pool": held}))


@operator("call")
def a_capture_confuses_others() -> Iterator[Fault]:
    """While a graph is captured, another hook leaves a device current, or knows nothing of another device."""

    def device_by_device(call: Call) -> None:
        if not machine().initialized:
            return
        before = machine().index_of()
        for one in machine().devices:
            machine().set_device(one.index)
            one.empty_cache()
        machine().set_device(before)

    def unknown(call: Call) -> object:
        index = call.arguments[0]
        if any(one.capturing is not None and one.index != index for one in machine().devices):
            return MemoryStats(AllocatorState.UNINITIALISED)
        return call.forward()

    bodies = {"empty_cache": device_by_device, "memory_stats": unknown}
    for hook, body in bodies.items():
        yield Fault(hook, "", HOOKS[hook].doc, partial(faulty, {hook: body}))


@operator("handle")
def a_wait_counts_once_or_at_home() -> Iterator[Fault]:
    """A wait counts the first time, on the stream's own device, for marked events, or until the mark moves."""

    def once(honest: Method) -> Method:
        def wait(self: Any, other: Any) -> None:
            seen = self.__dict__.setdefault("waited_for", set())
            if other not in seen:
                honest(self, other)
            seen.add(other)

        return wait

    def at_home(honest: Method) -> Method:
        return lambda self, other: honest(self, other) if other.host is self.host else None

    def marked(honest: Method) -> Method:
        def wait(self: Any, event: Any) -> None:
            if event._stream is None:
                raise RuntimeError("the event was not recorded")
            honest(self, event)

        return wait

    def selects(honest: Method) -> Method:
        def record(self: Any, stream: Any = None) -> None:
            honest(self, stream)
            if stream is not None:
                machine().set_device(stream.device_index)

        return record

    def one_stream(honest: Method) -> Method:
        def elapsed(self: Any, end: Any) -> float:
            if self._stream != end._stream:
                raise RuntimeError("these are events of different streams")
            return float(honest(self, end))

        return elapsed

    yield from _places(
        "create_stream",
        {
            "once": ("wait_stream", once),
            "at_home": ("wait_stream", at_home),
            "marked": ("wait_event", marked),
        },
    )
    yield from _places(
        "create_event", {"selects": ("record", selects), "one_stream": ("elapsed_time", one_stream)}
    )
    yield Fault("create_event", "moved", HOOKS["create_event"].doc, _moving)


def _moving() -> type[Honest]:
    """Events whose waiters are let go when they are recorded again."""

    def wait(honest: Method) -> Method:
        def run(self: Any, stream: Any = None) -> None:
            waiting = machine().current_stream() if stream is None else stream
            before = waiting.tail
            honest(self, stream)
            self.__dict__.setdefault("waits", []).append((waiting, before, waiting.tail))

        return run

    def record(honest: Method) -> Method:
        def run(self: Any, stream: Any = None) -> None:
            honest(self, stream)
            for waiting, before, after in self.__dict__.pop("waits", ()):
                if waiting.tail == after:
                    waiting.tail = before
                    for one in waiting._pending:
                        one.device_part = None if one.name == "wait" else one.device_part

        return run

    def body(call: Call) -> object:
        made: Any = call.forward()
        kind = type(made)
        own = {"wait": wait(kind.wait), "record": record(kind.record)}
        made.__class__ = type(kind.__name__, (kind,), own)
        return made

    return faulty({"create_event": body})


@operator("handle")
def streams_are_told_apart_badly() -> Iterator[Fault]:
    """Streams of several priorities share one counter, or are equal across devices."""

    def counted(call: Call) -> object:
        index, priority = call.arguments[0], max(-1, min(call.arguments[1], 0))
        made = call.forward()
        ring = call.memory.setdefault(f"{index} {priority}", {})
        call.memory["made"] = call.memory.get("made", -1) + 1
        return ring.setdefault(call.memory["made"] % 8, made)

    def alike(call: Call) -> object:
        made: Any = call.forward()
        kind = type(made)
        if "__eq__" not in vars(kind) or kind.__name__ != "Alike":
            own = {
                "__eq__": lambda self, other: self.stream_id == getattr(other, "stream_id", None),
                "__hash__": lambda self: hash(self.stream_id),
            }
            made.__class__ = type("Alike", (kind,), own)
        return made

    yield Fault(
        "create_stream", "counted", HOOKS["create_stream"].doc, partial(faulty, {"create_stream": counted})
    )
    yield Fault(
        "default_stream", "alike", HOOKS["default_stream"].doc, partial(faulty, {"default_stream": alike})
    )


@operator("order and time")
def a_replay_is_not_waited_for() -> Iterator[Fault]:
    """synchronize() does not wait for what a graph's replay put on another stream."""

    def change(honest: Method) -> Method:
        def replay(self: Any) -> None:
            device = self._device
            before, stream = device.tail, machine().current_stream(device.index)
            honest(self)
            if stream != device.default_stream:
                device.tail = before

        return replay

    told = HOOKS["synchronize"].doc
    yield Fault("synchronize", "", told, partial(changed_handles, "create_graph", "replay", change))
