"""Streams, events, graphs and pools of which one method is wrong: the methods of the contract's protocols."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from devicekit.contract import handles
from devicekit.contract.hooks import HOOKS
from devicekit_conformance.selftest.building import Call, faulty
from devicekit_conformance.selftest.honest import Honest, machine
from devicekit_conformance.selftest.operators import Fault, operator
from devicekit_conformance.selftest.operators.threads import elsewhere

Method = Callable[..., Any]
_PROTOCOLS = {
    name: kind
    for name, kind in vars(handles).items()
    if getattr(kind, "_is_protocol", False) and name != "Protocol"
}


def methods_of_handles(*wanted: str) -> Iterator[tuple[str, str, str]]:
    """(hook, method, the contract's sentence) for every method of every handle that a hook creates."""
    for hook, spec in HOOKS.items():
        protocol = _PROTOCOLS.get(spec.returns)
        if protocol is None or hook == "current_stream":
            continue
        for name, function in vars(protocol).items():
            if not name.startswith("_") and callable(function) and (not wanted or name in wanted):
                yield hook, name, f"{spec.returns}.{name}: {(function.__doc__ or '').strip()}"


def changed_handles(hook: str, method: str, change: Callable[[Method], Method]) -> type[Honest]:
    """A backend whose handles have this method changed."""

    changed: dict[type, type] = {}

    def body(call: Call) -> object:
        made = call.forward()
        kind = type(made)
        if kind not in changed.values():  # the same one may be handed out again
            if kind not in changed:
                changed[kind] = type(kind.__name__, (kind,), {method: change(getattr(kind, method))})
            made.__class__ = changed[kind]
        return made

    return faulty({hook: body})


def _place(change: Callable[[Method], Method], *wanted: str) -> Iterator[Fault]:
    for hook, method, told in methods_of_handles(*wanted):
        yield Fault(hook, method, told, partial(changed_handles, hook, method, change))


_VERBS = ("synchronize", "wait_event", "wait_stream", "record", "wait", "replay")


@operator("handle")
def a_method_does_nothing() -> Iterator[Fault]:
    """A method of a handle does nothing."""
    return _place(lambda honest: lambda self, *arguments: None, *_VERBS)


@operator("handle")
def a_method_does_nothing_in_other_threads() -> Iterator[Fault]:
    """A method of a handle does nothing in a thread other than the first."""
    return _place(
        lambda honest: lambda self, *arguments: None if elsewhere() else honest(self, *arguments), *_VERBS
    )


@operator("handle")
def a_method_does_nothing_each_third_time() -> Iterator[Fault]:
    """A method of a handle does nothing each third time."""

    def change(honest: Method) -> Method:
        calls = [0]

        def method(self: object, *arguments: object) -> object:
            calls[0] += 1
            return None if calls[0] % 3 == 0 else honest(self, *arguments)

        return method

    faults = list(methods_of_handles(*_VERBS))
    for hook, method, told in faults:
        calls = {"n": 0}

        def counted(honest: Method, calls: dict[str, int] = calls) -> Method:
            def run(self: object, *arguments: object) -> object:
                calls["n"] += 1
                return None if calls["n"] % 3 == 0 else honest(self, *arguments)

            return run

        yield Fault(hook, method, told, partial(changed_handles, hook, method, counted))


@operator("handle")
def a_query_is_always_true() -> Iterator[Fault]:
    """A query says that all is done."""
    return _place(lambda honest: lambda self: True, "query")


@operator("handle")
def a_query_is_never_true() -> Iterator[Fault]:
    """A query says that work is pending, for ever."""
    return _place(lambda honest: lambda self: False, "query")


@operator("handle")
def a_query_waits() -> Iterator[Fault]:
    """A query waits until it is true."""

    def change(honest: Method) -> Method:
        def method(self: Any) -> object:
            self.synchronize()
            return honest(self)

        return method

    return _place(change, "query")


@operator("handle")
def a_wait_gives_up() -> Iterator[Fault]:
    """Waiting ends after a while, whatever is pending."""

    def change(honest: Method) -> Method:
        def method(self: Any) -> None:
            until = machine().devices[0].clock.now() + 1.0
            while not self.query() and machine().devices[0].clock.now() < until:
                machine().devices[0].clock.advance(0.01)

        return method

    return _place(change, "synchronize")


@operator("handle")
def a_stream_that_is_given_is_ignored() -> Iterator[Fault]:
    """The current stream is meant, whichever is given."""
    return _place(lambda honest: lambda self, stream=None: honest(self), "record", "wait")


@operator("handle")
def the_current_stream_is_the_default_one() -> Iterator[Fault]:
    """Where no stream is given, the device's default stream is meant instead of the current one."""

    def change(honest: Method) -> Method:
        def method(self: Any, stream: Any = None) -> object:
            return honest(self, machine().device().default_stream if stream is None else stream)

        return method

    return _place(change, "record", "wait")


@operator("handle")
def waiting_for_a_mark_blocks_the_host() -> Iterator[Fault]:
    """Event.wait() blocks the calling thread."""

    def change(honest: Method) -> Method:
        def method(self: Any, stream: Any = None) -> None:
            honest(self, stream)
            self.synchronize()

        return method

    return _place(change, "wait")


@operator("handle")
def elapsed_time_is_wrong() -> Iterator[Fault]:
    """The time between two events is not the milliseconds between them."""
    told = HOOKS["create_event"].doc
    changes: dict[str, Callable[[float], object]] = {
        "seconds": lambda found: found / 1e3,
        "microseconds": lambda found: found * 1e3,
        "nanoseconds": lambda found: found * 1e6,
        "constant": lambda found: 1.0,
        "zero": lambda found: 0.0,
        "negative": lambda found: -found,
        "text": lambda found: f"{found} ms",
        "whole": lambda found: int(found),
    }
    for name, change in changes.items():
        made = lambda honest, change=change: lambda self, end: change(honest(self, end))  # noqa: E731
        yield Fault(
            "create_event",
            f"elapsed_{name}",
            told,
            partial(changed_handles, "create_event", "elapsed_time", made),
        )

    def untimed(call: Call) -> object:
        return call.honest(call.arguments[0], False)

    yield Fault("create_event", "untimed", told, partial(faulty, {"create_event": untimed}))


@operator("handle")
def capture_is_wrong() -> Iterator[Fault]:
    """A graph's capture() runs the work, or leaves something behind."""
    told = "DeviceGraph.capture: Record the work submitted inside the with block instead of running it."

    def eager(honest: Method) -> Method:
        return lambda self: contextlib.nullcontext()

    def swallowing(honest: Method) -> Method:
        @contextlib.contextmanager
        def method(self: Any) -> Iterator[None]:
            with contextlib.suppress(Exception), honest(self):
                yield

        return method

    def half(honest: Method) -> Method:
        def method(self: Any) -> None:
            steps = self._steps
            self._steps = steps[: max(1, len(steps) // 2)]
            try:
                honest(self)
            finally:
                self._steps = steps

        return method

    def stays(honest: Method) -> Method:
        class Keeping:
            def __init__(self, graph: Any) -> None:
                self.graph, self.inner = graph, honest(graph)

            def __enter__(self) -> None:
                self.inner.__enter__()

            def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
                self.inner.__exit__(None, None, None)
                if kind is not None:
                    self.graph._device.capturing = self.graph

        return lambda self: Keeping(self)

    yield Fault("create_graph", "eager", told, partial(changed_handles, "create_graph", "capture", eager))
    yield Fault(
        "create_graph", "swallowing", told, partial(changed_handles, "create_graph", "capture", swallowing)
    )
    yield Fault(
        "create_graph", "stays_after_error", told, partial(changed_handles, "create_graph", "capture", stays)
    )
    yield Fault(
        "create_graph",
        "replays_half",
        "DeviceGraph.replay: Run the captured work on the current stream.",
        partial(changed_handles, "create_graph", "replay", half),
    )


@operator("handle")
def a_pool_is_none() -> Iterator[Fault]:
    """A pool serves nothing, serves all that follows, or serves another device."""
    told = "MemoryPool.use: Serve allocations made inside the with block from this pool."
    left: list[object] = []

    def kept(honest: Method) -> Method:
        class Keeping:
            def __init__(self, pool: Any) -> None:
                self.inner = honest(pool)
                left.append(self.inner)  # or it would end with this object

            def __enter__(self) -> None:
                self.inner.__enter__()

            def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
                if kind is None:
                    self.inner.__exit__(None, None, None)

        return lambda self: Keeping(self)

    null = lambda honest: lambda self: contextlib.nullcontext()  # noqa: E731
    yield Fault("memory_pool", "none", told, partial(changed_handles, "memory_pool", "use", null))
    yield Fault("memory_pool", "kept_after_error", told, partial(changed_handles, "memory_pool", "use", kept))
    shared: list[object] = []

    def one(call: Call) -> object:
        if not shared:
            shared.append(call.forward())
        return shared[0]

    yield Fault("memory_pool", "one_for_all", sentence_of_pool(), partial(faulty, {"memory_pool": one}))


def sentence_of_pool() -> str:
    return HOOKS["memory_pool"].doc


class _Use:
    """A context that makes a stream current, and puts back what was."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        self.device = machine().index_of()
        self.before = machine().current_stream(self.stream.device_index)
        machine().set_device(self.stream.device_index)
        machine().set_stream(self.stream)

    def __exit__(self, kind: Any, *rest: Any) -> object:
        return self.leave(kind)

    def leave(self, kind: Any) -> object:
        machine().set_stream(self.before)
        machine().set_device(self.device)
        return None


class _ToDefault(_Use):
    def leave(self, kind: Any) -> object:
        machine().set_stream(machine().device(self.stream.device_index).default_stream)
        machine().set_device(self.device)
        return None


class _Swallowing(_Use):
    def leave(self, kind: Any) -> object:
        super().leave(kind)
        return True


class _LeavesDevice(_Use):
    def leave(self, kind: Any) -> object:
        machine().set_stream(self.before)
        return None


class _OnErrorOnly(_Use):
    def leave(self, kind: Any) -> object:
        return super().leave(kind) if kind is not None else None


class _NotOnBaseException(_Use):
    def leave(self, kind: Any) -> object:
        return super().leave(kind) if kind is None or issubclass(kind, Exception) else None


class _Nothing(_Use):
    def __enter__(self) -> None:
        """The stream is not made current."""

    def leave(self, kind: Any) -> object:
        return None


@operator("handle")
def streams_are_not_what_was_asked() -> Iterator[Fault]:
    """A stream is not new, or not the current one, or not restored."""
    told = {name: HOOKS[name].doc for name in ("create_stream", "current_stream", "use_stream")}

    def default(call: Call) -> object:
        call.forward()
        return machine().device(call.arguments[0]).default_stream

    yield Fault(
        "create_stream", "default", told["create_stream"], partial(faulty, {"create_stream": default})
    )
    yield Fault(
        "current_stream", "default", told["current_stream"], partial(faulty, {"current_stream": default})
    )

    def fresh(call: Call) -> object:
        call.forward()
        return machine().create_stream(call.arguments[0])

    yield Fault("current_stream", "new", told["current_stream"], partial(faulty, {"current_stream": fresh}))

    for kind in (_ToDefault, _Swallowing, _LeavesDevice, _OnErrorOnly, _NotOnBaseException, _Nothing):
        make = partial(faulty, {"use_stream": partial(_using, kind)})
        yield Fault("use_stream", kind.__name__[1:], told["use_stream"], make)
    ranges = {
        "unclamped": (-1, 0),
        "unclamped_beyond_32_bits": (-(1 << 31), (1 << 31) - 1),
        "unclamped_above_0": (-(1 << 62), 0),
    }
    for name, accepted in ranges.items():
        make = partial(faulty, {"create_stream": partial(_unclamped, accepted)})
        yield Fault("create_stream", name, told["create_stream"], make)


def _using(kind: Callable[[Any], object], call: Call) -> object:
    return kind(call.arguments[0])


def _unclamped(accepted: tuple[int, int], call: Call) -> object:
    if not accepted[0] <= call.arguments[1] <= accepted[1]:
        raise ValueError("no such priority")
    return call.forward()
