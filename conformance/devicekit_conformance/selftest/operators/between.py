"""Between calls: what one hook knows of another, of torch's own functions, of threads, and of blocks in blocks."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from devicekit.contract.hooks import HOOKS
from devicekit_conformance import frozen_contract
from devicekit_conformance.selftest.building import FIELDS, Body, Call, Unmakeable, faulty, neutral
from devicekit_conformance.selftest.honest import Honest, machine
from devicekit_conformance.selftest.operators import Fault, operator, sentence
from devicekit_conformance.selftest.operators.handles import changed_handles, methods_of_handles
from devicekit_conformance.selftest.operators.side_effects import EFFECTS, SAYINGS
from devicekit_conformance.selftest.operators.threads import SAME_WHEN_NEUTRAL, elsewhere
from devicekit_conformance.selftest.operators.values import is_known


def _drawn(seed: str, choices: Sequence[str]) -> str:
    """One of them, always the same one for one seed."""
    return min(choices, key=lambda one: hashlib.sha256(f"{seed}:{one}".encode()).hexdigest())


@operator("index")
def only_what_hooks_did_is_known() -> Iterator[Fault]:
    """What torch's own functions did meanwhile is not seen, once a hook was called."""
    of_thread = threading.local()

    def choose(call: Call) -> None:
        call.forward()
        of_thread.index = call.arguments[0]

    index = {"set_index": choose, "current_index": lambda call: getattr(of_thread, "index", call.forward())}
    yield Fault("current_index", "", sentence("current_index"), partial(faulty, index))

    def again(call: Call) -> None:
        if getattr(of_thread, "last", None) != call.arguments[0]:
            call.forward()
        of_thread.last = call.arguments[0]

    yield Fault("set_index", "", sentence("set_index"), partial(faulty, {"set_index": again}))

    def streams() -> dict[int, object]:
        found: dict[int, object] = of_thread.__dict__.setdefault("streams", {})
        return found

    class Use:
        def __init__(self, honest: Any, stream: Any) -> None:
            self.honest, self.stream = honest, stream

        def __enter__(self) -> object:
            self.before = streams().get(self.stream.device_index)
            streams()[self.stream.device_index] = self.stream
            return self.honest.__enter__()

        def __exit__(self, *exc: Any) -> object:
            streams()[self.stream.device_index] = self.before
            return self.honest.__exit__(*exc)

    def current(call: Call) -> object:
        return streams().get(call.arguments[0]) or call.forward()

    used = {"use_stream": lambda call: Use(call.forward(), call.arguments[0]), "current_stream": current}
    yield Fault("current_stream", "used", sentence("current_stream"), partial(faulty, used))

    def for_good(call: Call) -> None:
        call.forward()
        streams()[call.arguments[0].device_index] = call.arguments[0]

    kept = {"set_current_stream": for_good, "current_stream": current}
    yield Fault("current_stream", "set", sentence("current_stream"), partial(faulty, kept))
    addresses: set[int] = set()

    def pin(call: Call) -> Any:
        found: Any = call.forward()
        addresses.add(found.untyped_storage().data_ptr())
        return found

    def is_pinned(call: Call) -> bool:
        return call.forward() is True and call.arguments[0].untyped_storage().data_ptr() in addresses

    yield Fault(
        "is_pinned", "", sentence("is_pinned"), partial(faulty, {"pin_memory": pin, "is_pinned": is_pinned})
    )


_TRIGGERS = ("classify_error", "empty_cache", "memory_info", "create_graph", "manual_seed", "device_properties",
             "pin_memory", "memory_pool", "record_memory_history")  # fmt: skip


@operator("call")
def another_hooks_call_silences_it() -> Iterator[Fault]:
    """Once another hook was called, a hook does nothing, or answers 0."""

    def make(hook: str, trigger: str) -> type[Honest]:
        called: list[bool] = []

        def other(call: Call) -> object:
            found = call.forward()
            if found is not None or trigger != "classify_error":
                called.append(True)
            return found

        def body(call: Call) -> object:
            return neutral(hook) if called else call.forward()

        return faulty({hook: body, trigger: other})

    for hook in HOOKS:
        with contextlib.suppress(Unmakeable):
            neutral(hook)
            if hook not in SAME_WHEN_NEUTRAL | {"is_capturing"}:
                trigger = _drawn(hook, [one for one in _TRIGGERS if one != hook])
                yield Fault(hook, trigger, sentence(hook), partial(make, hook, trigger))


@operator("thread")
def another_thread_initialises() -> Iterator[Fault]:
    """Called in another thread, or for the second time, a hook that must not initialise the device does."""

    def body(when: Callable[[Call], bool], call: Call) -> object:
        if when(call) and not machine().in_bad_fork():
            machine().initialize()
        return call.forward()

    for hook in HOOKS:
        if frozen_contract.hook(hook).quiet:
            conditions: dict[str, Callable[[Call], bool]] = {
                "thread": lambda call: elsewhere(), "second": lambda call: call.number == 2,
            }  # fmt: skip
            for name, when in conditions.items():
                yield Fault(hook, name, sentence(hook), partial(faulty, {hook: partial(body, when)}))


@operator("thread")
def another_thread_is_told_something_else() -> Iterator[Fault]:
    """A number is another one in a thread other than the first."""

    def record(field: str) -> Body:
        def body(call: Call) -> object:
            found: Any = call.forward()
            value = getattr(found, field)
            return (
                found
                if value is None or not elsewhere()
                else dataclasses.replace(found, **{field: value + 1})
            )

        return body

    for hook, fields in FIELDS.items():
        for field in fields:
            if is_known(hook, field):
                make = partial(faulty, {hook: record(field)})
                yield Fault(hook, field, sentence(hook), make)

    def listed(call: Call) -> object:
        found: Any = call.forward()
        return [dataclasses.replace(one, pid=threading.get_native_id()) for one in found or ()]

    yield Fault(
        "process_memory", "pid", sentence("process_memory"), partial(faulty, {"process_memory": listed})
    )


@operator("side effect")
def handles_change_the_process() -> Iterator[Fault]:
    """A method of what a hook returned changes the process."""
    effects = sorted(EFFECTS)
    for hook, method, told in methods_of_handles():
        for number in range(2):
            effect = _drawn(f"{hook}.{method}.{number}", effects)
            if effect in SAYINGS:
                continue  # what a vendor's object says of its work changes nothing

            def change(honest: Callable[..., Any], effect: str = effect) -> Callable[..., Any]:
                def run(self: object, *arguments: object) -> object:
                    found = honest(self, *arguments)
                    EFFECTS[effect]()
                    return found

                return run

            make = partial(changed_handles, hook, method, change)
            yield Fault(hook, f"{method}_{effect}", told, make)


@operator("handle")
def the_current_stream_is_that_of_birth() -> Iterator[Fault]:
    """Where no stream is given, the one is meant that was current when the handle was made."""

    def make(hook: str, method: str, change: Callable[[Any, Any], Callable[..., Any]]) -> type[Honest]:
        def body(call: Call) -> object:
            made: Any = call.forward()
            born = machine().current_stream(call.arguments[0])
            honest = getattr(type(made), method)
            made.__class__ = type(type(made).__name__, (type(made),), {method: change(honest, born)})
            return made

        return faulty({hook: body})

    def given(honest: Any, born: Any) -> Callable[..., Any]:
        return lambda self, stream=None: honest(self, born if stream is None else stream)

    for method in ("record", "wait"):
        told = f"Event.{method}: (default: the current stream)"
        yield Fault("create_event", method, told, partial(make, "create_event", method, given))

    def on(honest: Any, stream: Any) -> Callable[..., Any]:
        def replay(self: Any) -> None:
            before = machine().current_stream(stream.device_index)
            machine().set_stream(stream)
            try:
                honest(self)
            finally:
                machine().set_stream(before)

        return replay

    told = "DeviceGraph.replay: Run the captured work on the current stream."
    yield Fault("create_graph", "replay", told, partial(make, "create_graph", "replay", on))
    default = lambda honest, born: on(honest, machine().devices[born.device_index].default_stream)  # noqa: E731
    yield Fault("create_graph", "replay_default", told, partial(make, "create_graph", "replay", default))


@operator("handle")
def a_block_in_a_block_ends_both() -> Iterator[Fault]:
    """After a block within a block, what the outer one made so is so no more."""

    def pool(honest: Callable[..., Any]) -> Callable[..., Any]:
        @contextlib.contextmanager
        def use(self: Any) -> Iterator[None]:
            with honest(self):
                yield
            machine().device(self._index).use_pool(None)

        return use

    told = "MemoryPool.use: Serve allocations made inside the with block from this pool."
    yield Fault("memory_pool", "use", told, partial(changed_handles, "memory_pool", "use", pool))

    def capture(change: Callable[[Any], None]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def changed(honest: Callable[..., Any]) -> Callable[..., Any]:
            @contextlib.contextmanager
            def run(self: Any) -> Iterator[None]:
                with honest(self):
                    yield
                change(self._device)

            return run

        return changed

    ends: dict[str, Callable[[Any], None]] = {
        "stream": lambda device: machine().set_stream(device.default_stream),
        "pool": lambda device: device.use_pool(None),
    }
    for name, change in ends.items():
        make = partial(changed_handles, "create_graph", "capture", capture(change))
        hook = "memory_pool" if name == "pool" else "create_graph"
        yield Fault(hook, f"capture_{name}", told if name == "pool" else _CAPTURE, make)


_CAPTURE = "DeviceGraph.capture: Record the work submitted inside the with block instead of running it."
