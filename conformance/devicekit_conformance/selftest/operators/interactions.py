"""Between things that last and later calls: what goes wrong only then, and what only a late use shows."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from devicekit.contract.hooks import HOOKS
from devicekit_conformance.selftest.building import Call, Unmakeable, faulty, neutral
from devicekit_conformance.selftest.honest import Honest, machine
from devicekit_conformance.selftest.operators import Fault, operator, sentence
from devicekit_conformance.selftest.operators.handles import changed_handles
from devicekit_conformance.selftest.operators.threads import SAME_WHEN_NEUTRAL, elsewhere

_SEVENTH = 7
_USE = "A context in which ``stream`` is current; the one at its entry is restored on every exit."
_POOL = "MemoryPool.use: Serve allocations made inside the with block from this pool."


@operator("call")
def the_seventh_block_is_not_left() -> Iterator[Fault]:
    """The seventh block of a kind leaves what it made current."""

    def stream(call: Call) -> object:
        inside, number = call.forward(), call.number

        @contextlib.contextmanager
        def run() -> Iterator[None]:
            with inside:
                yield
            if number % _SEVENTH == 0:
                machine().set_stream(call.arguments[0])

        return run()

    yield Fault("use_stream", "", _USE, partial(faulty, {"use_stream": stream}))
    count = itertools.count(1)

    def pool(honest: Callable[..., Any]) -> Callable[..., Any]:
        @contextlib.contextmanager
        def use(self: Any) -> Iterator[None]:
            with honest(self):
                yield
            if next(count) % _SEVENTH == 0:
                machine().device(self._index).use_pool(self._pool)

        return use

    yield Fault("memory_pool", "", _POOL, partial(changed_handles, "memory_pool", "use", pool))


@operator("index")
def a_setting_is_the_first_devices() -> Iterator[Fault]:
    """A setting of the process reaches the first device's allocator only."""

    def body(call: Call) -> None:
        others = machine().devices[1:]
        before = [one.allocator.config for one in others]
        call.forward()
        for one, config in zip(others, before, strict=True):
            one.allocator.config = config

    told = sentence("set_allocator_setting")
    yield Fault("set_allocator_setting", "", told, partial(faulty, {"set_allocator_setting": body}))


def _on_device_1(call: Call) -> bool:
    return bool(call.arguments[0] == 1)


def _elsewhere(call: Call) -> bool:
    return elsewhere()


@operator("call")
def the_work_of_another_silences_it() -> Iterator[Fault]:
    """Once a method of another hook's handle was called, a hook does nothing in other threads, or on device 1."""

    def make(hook: str, other: str, method: str, only: Callable[[Call], bool]) -> type[Honest]:
        used: list[bool] = []

        def change(honest: Callable[..., Any]) -> Callable[..., Any]:
            def run(self: object, *arguments: object) -> object:
                used.append(True)
                return honest(self, *arguments)

            return run

        def body(call: Call) -> object:
            return neutral(hook) if used and only(call) else call.forward()

        made = changed_handles(other, method, change)
        return type("Derived", (made,), {hook: vars(faulty({hook: body}))[hook]})

    used_by = itertools.cycle(
        (("create_graph", "reset"), ("create_event", "query"), ("create_stream", "query"))
    )
    for hook, spec in HOOKS.items():
        if hook in SAME_WHEN_NEUTRAL | {"is_capturing"}:
            continue
        with contextlib.suppress(Unmakeable):
            neutral(hook)
            other, method = next(used_by)
            only = (
                (lambda call: call.arguments[0] == 1)
                if "index" in spec.parameters
                else (lambda call: elsewhere())
            )
            yield Fault(hook, method, sentence(hook), partial(make, hook, other, method, only))
