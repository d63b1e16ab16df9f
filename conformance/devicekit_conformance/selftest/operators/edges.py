"""At the edges: neighbours, odd forms, long chains and lists, the smallest, and what another device was given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from devicekit.contract.causes import chain
from devicekit.contract.hooks import HOOKS
from devicekit_conformance.selftest.building import Body, Call, faulty
from devicekit_conformance.selftest.honest import machine
from devicekit_conformance.selftest.operators import Fault, operator
from devicekit_conformance.selftest.operators.handles import changed_handles
from devicekit_conformance.selftest.operators.threads import elsewhere


def _places(hook: str, bodies: Mapping[str, Body]) -> Iterator[Fault]:
    for variant, body in bodies.items():
        yield Fault(hook, variant, HOOKS[hook].doc, partial(faulty, {hook: body}))


def _end(tensor: torch.Tensor) -> int:
    return tensor.data_ptr() + tensor.nbytes


@operator("meaning")
def neighbours_are_confused() -> Iterator[Fault]:
    """Registered memory is confused with what lies beside it, around it or in it."""

    def overlaps(call: Call) -> object:
        tensor, books = call.arguments[0], machine().pinned._registered
        free = tensor.is_contiguous() and books.end_around(tensor.data_ptr()) is None
        if free and books.touches(tensor.data_ptr(), _end(tensor)):
            return None
        return call.forward()

    def half_done(call: Call) -> object:
        tensor, books = call.arguments[0], machine().pinned._registered
        try:
            return call.forward()
        except ValueError:
            later = [one for one in books._starts if tensor.data_ptr() < one < _end(tensor)]
            if later and books.end_around(tensor.data_ptr()) is None:
                books.add(tensor.data_ptr(), min(later))
            raise

    def moves(call: Call) -> object:
        tensor = call.arguments[0]
        if tensor.data_ptr() % 64:
            tensor.data = tensor.clone()
        return call.forward()

    def keeps(call: Call) -> object:
        found = call.forward()
        call.memory[str(call.arguments[0].data_ptr())] = call.arguments[0]
        return found

    def takes_next(call: Call) -> object:
        found = call.forward()
        if machine().pinned._registered.end_of(_end(call.arguments[0])) is not None:
            machine().pinned._registered.remove(_end(call.arguments[0]))
        return found

    def takes_tails(call: Call) -> object:
        tensor, books = call.arguments[0], machine().pinned._registered
        if tensor.numel() and books.end_around(tensor.data_ptr()) == _end(tensor):
            books.remove(max(one for one in books._starts if one <= tensor.data_ptr()))
            return None
        return call.forward()

    def by_count(call: Call) -> object:
        tensor = call.arguments[0]
        if tensor.device.type != "cpu" or not tensor.numel():
            return False
        call.forward()  # which settles the books
        return machine().pinned._covers(tensor.data_ptr(), _end(tensor))

    yield from _places(
        "register_host_memory",
        {"overlaps": overlaps, "half_done": half_done, "moves": moves, "keeps": keeps},
    )
    yield from _places("unregister_host_memory", {"takes_next": takes_next, "takes_tails": takes_tails})
    yield from _places("is_pinned", {"by_count": by_count})


@operator("meaning")
def a_form_is_refused_or_lost() -> Iterator[Fault]:
    """Tensors of one form are refused, or come back as others."""

    def unconjugated(call: Call) -> object:
        tensor = call.arguments[0]
        return call.honest(tensor.conj() if tensor.is_conj() else tensor)

    def leaves(call: Call) -> object:
        if call.arguments[0].requires_grad:
            raise RuntimeError("call detach() first")
        return call.forward()

    def meta(call: Call) -> object:
        return call.arguments[0] if call.arguments[0].device.type == "meta" else call.forward()

    def far(call: Call) -> object:
        found: Any = call.forward()
        size = call.arguments[0].itemsize
        lost = (1 << 20) // size
        return found if found.offset < lost else dataclasses.replace(found, offset=found.offset - lost)

    def own_thread(call: Call) -> object:
        if elsewhere():
            raise RuntimeError("signals come to the main thread only")
        return call.forward()

    yield from _places("pin_memory", {"unconjugated": unconjugated, "with_gradients": leaves, "meta": meta})
    yield from _places("export_ipc", {"far": far})
    yield from _places("import_ipc", {"own_thread": own_thread})


@operator("meaning")
def an_error_is_followed_wrongly() -> Iterator[Fault]:
    """What an error came from is followed too far, not far enough, or by what its class says of itself."""

    def shallow(call: Call) -> object:
        number = sum(1 for _ in chain(call.arguments[0]))
        kind = call.forward()
        return kind if number <= 10 or isinstance(call.arguments[0], torch.OutOfMemoryError) else None

    def hidden(call: Call) -> object:
        error = call.arguments[0]
        kind = call.forward()
        below = BaseException.__dict__["__context__"].__get__(error)
        return kind if kind is not None or below is None else call.honest(below)

    def hashes(call: Call) -> object:
        seen = dict.fromkeys(chain(call.arguments[0]), True)
        return call.forward() if seen else None

    def cuts(call: Call) -> object:
        kind = call.forward()
        if kind is not None:
            BaseException.with_traceback(call.arguments[0], None)
        return kind

    yield from _places(
        "classify_error",
        {"ten_deep": shallow, "from_none": hidden, "hashes": hashes, "cuts_tracebacks": cuts},
    )


@operator("release")
def a_peak_is_lost() -> Iterator[Fault]:
    """Peaks fall, though nobody reset them; or stay where they were, though somebody did."""

    def when_idle(call: Call) -> object:
        found = call.forward()
        for one in machine().devices:
            if machine().initialized and not one.allocator.counters.current("reserved_bytes"):
                one.allocator.counters.reset_peaks()
        return found

    def only_lower(call: Call) -> object:
        if not machine().initialized:
            return call.forward()
        now = machine().device(call.arguments[0]).allocator.counters.current("reserved_bytes")
        low = call.memory.setdefault(str(call.arguments[0]), 0)
        if now >= low:
            call.memory[str(call.arguments[0])] = now
            return call.forward()
        return None

    yield from _places("empty_cache", {"when_idle": when_idle})
    yield from _places("reset_peak_memory_stats", {"not_below_the_last": only_lower})


@operator("value")
def a_limit_is_taken_lightly() -> Iterator[Fault]:
    """A limit is read from anything, counts only what is in use, or ends another device's."""

    def text(call: Call) -> object:
        return call.honest(call.arguments[0], float(call.arguments[1]))

    def in_use(call: Call) -> object:
        found = call.forward()
        allocator = machine().device(call.arguments[0]).allocator
        limit, grow = allocator.limit, type(allocator)._grow

        def growing(size: int, key: Any) -> object:
            counters = allocator.counters
            allocator.limit = limit + counters.current("reserved_bytes") - counters.current("allocated_bytes")
            try:
                return grow(allocator, size, key)
            finally:
                allocator.limit = limit

        allocator._grow = growing  # type: ignore[method-assign,assignment]  # that is the fault
        return found

    def alone(call: Call) -> object:
        found = call.forward()
        for one in machine().devices:
            if one.index != call.arguments[0] and one.fraction < 0.5:
                one.set_fraction(1.0)
        return found

    yield from _places("set_memory_fraction", {"text": text, "in_use": in_use, "alone": alone})


@operator("value")
def the_small_and_the_many() -> Iterator[Fault]:
    """Small blocks go elsewhere, long lists end early, and a value may hold a second setting."""

    def use(honest: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Any) -> Any:
            allocator = machine().device(self._index).allocator
            malloc = type(allocator).malloc

            def serve(size: int, *, stream: int = 0, pool: int | None = None) -> Any:
                return malloc(allocator, size, stream=stream, pool=pool if size > 1 << 20 else None)

            allocator.malloc = serve  # type: ignore[method-assign,assignment]  # that is the fault
            return honest(self)

        return run

    def eight(call: Call) -> object:
        found: Any = call.forward()
        return found and found[:8]

    def both(call: Call) -> None:
        for one in ":".join(call.arguments).split(","):
            name, _, value = one.partition(":")
            call.honest(name, value)

    yield Fault(
        "memory_pool", "small", HOOKS["memory_pool"].doc, partial(changed_handles, "memory_pool", "use", use)
    )
    yield from _places("memory_snapshot", {"eight": eight})
    yield from _places("set_allocator_setting", {"two": both})
    yield from _places("native_handle", {"signed": lambda call: _signed(call)})
    yield from _places("is_bad_fork", {"one_thread": lambda call: call.forward() and not elsewhere()})


def _signed(call: Call) -> object:
    found: Any = call.forward()
    return -found - 1 if call.arguments[0].priority < 0 else found
