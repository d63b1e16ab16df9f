"""What a backend accepts that it must refuse, and what it takes away that it must leave."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from devicekit.contract.records import AllocatorState
from devicekit_conformance.selftest.building import Body, Call, faulty
from devicekit_conformance.selftest.honest import machine
from devicekit_conformance.selftest.operators import Fault, operator, sentence
from devicekit_conformance.selftest.operators.handles import Method, changed_handles

_Wrong = Callable[[torch.Tensor], bool]


def _faults(bodies: dict[str, Body], variant: str = "") -> Iterator[Fault]:
    for hook, body in bodies.items():
        yield Fault(hook, variant, sentence(hook), partial(faulty, {hook: body}))


@operator("meaning")
def what_must_be_refused_is_accepted() -> Iterator[Fault]:
    """A tensor that a hook must refuse is accepted, and nothing is done."""
    kinds: dict[str, _Wrong] = {
        "on_a_device": lambda tensor: tensor.device.type != "cpu",
        "not_contiguous": lambda tensor: tensor.device.type == "cpu" and not tensor.is_contiguous(),
        "locked_already": lambda tensor: tensor.device.type == "cpu" and machine().pinned.is_pinned(tensor),
        "not_locked": lambda tensor: tensor.device.type == "cpu" and not machine().pinned.is_pinned(tensor),
    }
    places = (
        ("pin_memory", "on_a_device"), ("register_host_memory", "on_a_device"),
        ("register_host_memory", "not_contiguous"), ("register_host_memory", "locked_already"),
        ("unregister_host_memory", "not_locked"),
    )  # fmt: skip

    def body(wrong: _Wrong, call: Call) -> object:
        (tensor,) = call.arguments
        return tensor if wrong(tensor) else call.forward()

    for hook, kind in places:
        yield from _faults({hook: partial(body, kinds[kind])}, kind)


@operator("meaning")
def every_number_is_accepted() -> Iterator[Fault]:
    """A fraction that is none is clamped."""

    def body(call: Call) -> object:
        index, fraction = call.arguments
        return call.honest(index, min(max(fraction, 0.0), 1.0) if fraction == fraction else 1.0)

    yield from _faults({"set_memory_fraction": body})


@operator("release")
def a_limit_takes_away() -> Iterator[Fault]:
    """A limit below what is in use is refused, empties the cache, or destroys what is over it."""

    def refused(call: Call) -> object:
        index, fraction = call.arguments
        if machine().initialized and _held(index) > fraction * machine().config.capacity:
            raise ValueError("more than that is in use")
        return call.forward()

    def empties(call: Call) -> object:
        machine().empty_cache()
        return call.forward()

    def destroys(call: Call) -> object:
        index, fraction = call.arguments
        if machine().initialized and _held(index) > fraction * machine().config.capacity:
            for found in gc.get_objects():
                if isinstance(found, torch.Tensor) and found.device.type == "sim" and found.nbytes < 1 << 20:
                    found.zero_()
        return call.forward()

    for name, body in (("refused", refused), ("empties", empties), ("destroys", destroys)):
        yield from _faults({"set_memory_fraction": body}, name)


def _held(index: int) -> int:
    return machine().device(index).allocator.counters.current("reserved_bytes")


@operator("release")
def a_pool_is_kept() -> Iterator[Fault]:
    """A pool that nobody holds keeps its memory."""

    def body(call: Call) -> object:
        made = call.forward()
        call.memory.setdefault("pools", []).append(made)
        return made

    yield from _faults({"memory_pool": body})


@operator("meaning")
def a_state_is_another() -> Iterator[Fault]:
    """Why nothing is known is told wrongly."""

    def body(wrong: AllocatorState, when: AllocatorState, call: Call) -> object:
        found: Any = call.forward()
        return dataclasses.replace(found, state=wrong) if found.state is when else found

    none, forked = AllocatorState.UNINITIALISED, AllocatorState.BAD_FORK
    yield from _faults({"memory_stats": partial(body, forked, none)}, "before_use")
    yield from _faults({"memory_stats": partial(body, none, forked)}, "in_a_child")


@operator("meaning")
def what_it_came_from_is_judged_first() -> Iterator[Fault]:
    """An error is taken for what it came from."""

    def body(call: Call) -> object:
        (error,) = call.arguments
        below = error.__cause__ or error.__context__
        return (call.honest(below) if below is not None and below is not error else None) or call.forward()

    yield from _faults({"classify_error": body})


@operator("value")
def the_largest_is_refused() -> Iterator[Fault]:
    """A seed above 32 bits is refused."""

    def body(call: Call) -> object:
        _, seed = call.arguments
        if seed >= 1 << 40:
            raise OverflowError("the seed has 40 bits at most")
        return call.forward()

    yield from _faults({"manual_seed": body})


@operator("thread")
def blocks_of_threads_share_a_record() -> Iterator[Fault]:
    """What was current before a block is kept in one place for all threads."""
    before: list[Any] = []

    def body(call: Call) -> object:
        (stream,) = call.arguments

        @contextlib.contextmanager
        def block() -> Iterator[None]:
            thread = machine()._thread.streams
            before.append(thread.get(stream.device_index))
            thread[stream.device_index] = stream
            try:
                yield
            finally:
                last = before.pop()
                if last is None:
                    thread.pop(stream.device_index, None)
                else:
                    thread[stream.device_index] = last

        return block()

    yield from _faults({"use_stream": body})


@operator("index")
def a_block_ends_those_of_other_devices() -> Iterator[Fault]:
    """After a block of a stream, the other devices are on their default streams."""

    def body(call: Call) -> object:
        honest: Any = call.forward()
        index = call.arguments[0].device_index

        @contextlib.contextmanager
        def block() -> Iterator[object]:
            with honest as found:
                yield found
            for other in [one for one in machine()._thread.streams if one != index]:
                del machine()._thread.streams[other]

        return block()

    yield from _faults({"use_stream": body})


@operator("order and time")
def other_threads_work_is_not_waited_for() -> Iterator[Fault]:
    """A wait is for the streams that the calling thread has made current."""

    def body(call: Call) -> None:
        (index,) = call.arguments
        seen = call.memory.setdefault("seen", {})
        mine = seen.setdefault((threading.get_ident(), index), [])
        stream = machine().current_stream(index)
        if stream not in mine:
            mine.append(stream)
        for one in mine:
            one.synchronize()

    yield from _faults({"synchronize": body})


@operator("handle")
def streams_repeat_too_soon() -> Iterator[Fault]:
    """There are seven streams, handed out in turn."""

    def body(call: Call) -> object:
        index, priority = call.arguments
        ring = call.memory.setdefault(f"{index} {priority}", [])
        if len(ring) < 7:
            ring.append(call.forward())
            return ring[-1]
        ring.append(ring.pop(0))
        return ring[-1]

    yield from _faults({"create_stream": body})


@operator("meaning")
def a_kind_is_of_one_type_only() -> Iterator[Fault]:
    """A type that is derived from one that means something means nothing."""

    def body(call: Call) -> object:
        (error,) = call.arguments
        known = isinstance(error, torch.OutOfMemoryError) and type(error) is not torch.OutOfMemoryError
        return None if known else call.forward()

    yield from _faults({"classify_error": body})


@operator("value")
def strides_are_ignored() -> Iterator[Fault]:
    """Of a tensor the memory is copied, as if it were contiguous."""

    def body(call: Call) -> object:
        (tensor,) = call.arguments
        if tensor.device.type != "cpu" or tensor.is_contiguous():
            return call.forward()
        whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        some = whole.repeat(1 + tensor.numel() // max(1, whole.numel()))[: tensor.numel()]
        return call.honest(some.reshape(tensor.shape))

    yield from _faults({"pin_memory": body})


@operator("value")
def nothing_is_no_argument() -> Iterator[Fault]:
    """A tensor without elements is refused."""

    def body(call: Call) -> object:
        if not call.arguments[0].numel():
            raise ValueError("this tensor has no memory")
        return call.forward()

    yield from _faults({"is_pinned": body, "pin_memory": body})


@operator("release")
def a_part_does_not_hold_the_whole() -> Iterator[Fault]:
    """Pinned memory of which only a part is in use is given back."""

    def body(call: Call) -> None:
        call.forward()
        for found in gc.get_objects():
            part = type(found) is torch.Tensor and found.device.type == "cpu" and found._is_view()
            if part and found.nbytes > 1 << 16 and machine().pinned.is_pinned(found):
                found.zero_()

    yield from _faults({"empty_host_cache": body})


@operator("handle")
def a_graph_is_never_empty_again() -> Iterator[Fault]:
    """After reset() what was captured is replayed beside what is captured next."""

    def change(honest: Method) -> Method:
        def reset(self: Any) -> None:
            steps = list(self._steps)
            honest(self)
            self._steps.extend(steps)

        return reset

    told = "DeviceGraph.reset: Drop the captured work and the memory it holds."
    yield Fault("create_graph", "reset", told, partial(changed_handles, "create_graph", "reset", change))
