"""Order and time: hooks that do not wait, give up, wait for less or for more than they say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from devicekit.contract.hooks import HOOKS
from devicekit.contract.spec import HookKind
from devicekit_conformance.selftest.building import Body, Call, faulty, takes_index
from devicekit_conformance.selftest.honest import machine
from devicekit_conformance.selftest.operators import Fault, operator, sentence


@operator("order and time")
def synchronize_gives_up() -> Iterator[Fault]:
    """synchronize() ends after a while, whatever is pending."""

    def polling(seconds: float) -> Body:
        def body(call: Call) -> None:
            device = machine().device(call.arguments[0])
            machine().initialize()
            until = device.clock.now() + seconds
            while device.tail > device.clock.now() and device.clock.now() < until:
                device.clock.advance(min(0.01, seconds))

        return body

    for seconds in (0.001, 0.1, 1.0, 10.0):
        yield Fault(
            "synchronize",
            f"after_{seconds:g}_s".replace(".", "_"),
            sentence("synchronize"),
            partial(faulty, {"synchronize": polling(seconds)}),
        )


@operator("order and time")
def synchronize_waits_for_less() -> Iterator[Fault]:
    """synchronize() waits for one stream, for the default one, or for what was there a call ago."""

    def current(call: Call) -> None:
        machine().initialize()
        machine().current_stream(call.arguments[0]).synchronize()

    def default(call: Call) -> None:
        machine().initialize()
        machine().device(call.arguments[0]).default_stream.synchronize()

    def earlier(call: Call) -> None:
        machine().initialize()
        device = machine().device(call.arguments[0])
        device.clock.advance_to(call.memory.get("tail", 0.0))
        call.memory["tail"] = device.tail

    def sleeping(call: Call) -> None:
        machine().index_of(call.arguments[0])
        time.sleep(0.01)

    for body in (current, default, earlier, sleeping):
        make = partial(faulty, {"synchronize": body})
        yield Fault("synchronize", body.__name__, sentence("synchronize"), make)


@operator("order and time")
def observing_waits() -> Iterator[Fault]:
    """A hook that only looks waits for the device."""

    def body(call: Call) -> object:
        if machine().initialized and not machine().in_bad_fork():
            machine().synchronize(
                call.arguments[0] if call.arguments and isinstance(call.arguments[0], int) else 0
            )
        return call.forward()

    for hook, spec in HOOKS.items():
        if spec.kind is HookKind.OBSERVING or hook in ("current_index", "current_stream", "is_available"):
            told = "Observing never synchronises the device."
            yield Fault(hook, "", told, partial(faulty, {hook: body}))


@operator("order and time")
def observing_empties() -> Iterator[Fault]:
    """A hook that only looks empties the cache."""

    def body(call: Call) -> object:
        if machine().initialized and not machine().in_bad_fork():
            for device in machine().devices:
                device.allocator.empty_cache()
        return call.forward()

    for hook, spec in HOOKS.items():
        if spec.kind is HookKind.OBSERVING or (takes_index(hook) and hook != "synchronize"):
            told = "Observing never empties a cache; only what releases does."
            yield Fault(hook, "", told, partial(faulty, {hook: body}))


@operator("order and time")
def observing_resets_peaks() -> Iterator[Fault]:
    """A hook that only looks resets the peaks."""

    def body(call: Call) -> object:
        found = call.forward()
        if machine().initialized and not machine().in_bad_fork():
            for device in machine().devices:
                device.allocator.counters.reset_peaks()
        return found

    for hook, spec in HOOKS.items():
        if spec.kind is HookKind.OBSERVING or hook in ("synchronize", "empty_cache", "current_stream"):
            told = "Observing never resets a peak; reset_peak_memory_stats does."
            yield Fault(hook, "", told, partial(faulty, {hook: body}))


@operator("order and time")
def observing_initialises() -> Iterator[Fault]:
    """A hook initialises the device that must not."""

    def body(call: Call) -> object:
        if not machine().in_bad_fork():
            machine().initialize()
        return call.forward()

    for hook, spec in HOOKS.items():
        may = "May initialise" in spec.doc or spec.kind is HookKind.ORDERING or hook == "synchronize"
        if not may:
            told = "Unless a hook says otherwise it must not initialise a device that was not initialised."
            yield Fault(hook, "", told, partial(faulty, {hook: body}))


@operator("order and time")
def emptying_does_not_wait() -> Iterator[Fault]:
    """empty_cache() does not wait for the device."""

    def body(call: Call) -> None:
        if machine().initialized:
            for device in machine().devices:
                device.allocator.empty_cache()

    def last(call: Call) -> None:
        if machine().initialized:
            machine().synchronize(0)
            for device in machine().devices:
                device.allocator.empty_cache()

    yield Fault("empty_cache", "none", HOOKS["empty_cache"].doc, partial(faulty, {"empty_cache": body}))
    yield Fault(
        "empty_cache", "first_device", HOOKS["empty_cache"].doc, partial(faulty, {"empty_cache": last})
    )
