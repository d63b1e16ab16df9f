"""Release: what is destroyed that was in use, and what is kept that was not."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from devicekit.contract.hooks import HOOKS
from devicekit_conformance.selftest.building import Call, faulty
from devicekit_conformance.selftest.honest import machine
from devicekit_conformance.selftest.operators import Fault, operator


def _destroy(wanted: Callable[[torch.Tensor], bool]) -> None:
    for found in gc.get_objects():
        if isinstance(found, torch.Tensor) and found.device.type == "sim" and wanted(found):
            found.zero_()


def _stream_of(block: torch.Tensor) -> int:
    return int(block._lease.stream_id)  # type: ignore[attr-defined]


def _is_private(block: Any) -> bool:
    lease = block._lease
    return lease is not None and lease.block is not None and lease.block.segment.key.private is not None


def _graph_of(block: Any) -> object:
    return None if block._lease is None else block._lease.graph


@operator("release")
def emptying_destroys_live_memory() -> Iterator[Fault]:
    """empty_cache() overwrites memory that is in use."""
    kinds: dict[str, Callable[[torch.Tensor], bool]] = {
        "everywhere": lambda block: True,
        "on_the_last_device": lambda block: block.device.index == len(machine().devices) - 1,
        "on_side_streams": lambda block: _stream_of(block) != 0,
        "small_blocks": lambda block: block.nbytes <= 1 << 20,
        "large_blocks": lambda block: block.nbytes > 1 << 20,
        "floats": lambda block: block.dtype.is_floating_point,
        "views": lambda block: block._is_view(),
        "in_pools": lambda block: _is_private(block) and _graph_of(block) is None,
        "in_graphs": lambda block: _graph_of(block) is not None,
    }
    for name, wanted in kinds.items():

        def body(call: Call, wanted: Callable[[torch.Tensor], bool] = wanted) -> None:
            call.forward()
            _destroy(wanted)

        make = partial(faulty, {"empty_cache": body})
        yield Fault("empty_cache", name, HOOKS["empty_cache"].doc, make)


@operator("release")
def another_hook_destroys_live_memory() -> Iterator[Fault]:
    """A hook that has no business with memory overwrites what is in use."""
    for hook in ("empty_host_cache", "collect_ipc", "reset_peak_memory_stats", "memory_stats", "memory_info",
                 "set_memory_fraction", "memory_pool", "synchronize", "create_graph", "memory_snapshot",
                 "set_index", "manual_seed"):  # fmt: skip

        def body(call: Call) -> object:
            found = call.forward()
            if machine().initialized and not machine().in_bad_fork():
                _destroy(lambda block: block.nbytes > 4096)
            return found

        told = "Memory that is in use stays as it is."
        yield Fault(hook, "", told, partial(faulty, {hook: body}))


@operator("release")
def emptying_keeps_some() -> Iterator[Fault]:
    """empty_cache() gives back less than it could."""

    def only(devices: Callable[[int], bool]) -> Callable[[Call], None]:
        def body(call: Call) -> None:
            if machine().initialized:
                for device in machine().devices:
                    device.synchronize()
                    if devices(device.index):
                        device.empty_cache()

        return body

    def keeping(kept: Callable[[Any, int], bool]) -> Callable[[Call], None]:
        def body(call: Call) -> None:
            if not machine().initialized:
                return
            for device in machine().devices:
                device.synchronize()
                allocator = device.allocator
                with allocator._locked():
                    allocator._retire()
                    for key, free in allocator._free.items():
                        blocks = [block for block in free if not block.split]
                        for number, block in enumerate(blocks):
                            if not kept((key, block), number) and (
                                key.private is None or key.private not in allocator._private_pools
                            ):
                                allocator._release(block)

        return body

    bodies: dict[str, Callable[[Call], None]] = {
        "current_device": lambda call: only(lambda index: index == machine().index_of())(call),
        "first_device": only(lambda index: index == 0),
        "half": keeping(lambda place, number: number % 2 == 1),
        "small_segments": keeping(lambda place, number: place[0].size_class == "small_pool"),
        "large_segments": keeping(lambda place, number: place[0].size_class == "large_pool"),
        "side_streams": keeping(lambda place, number: place[0].stream != 0),
        "the_largest": keeping(lambda place, number: place[1].size >= 128 << 20),
        "one_block": keeping(lambda place, number: number == 0),
    }
    for name, body in bodies.items():
        make = partial(faulty, {"empty_cache": body})
        yield Fault("empty_cache", name, HOOKS["empty_cache"].doc, make)


@operator("release")
def pinned_memory_is_not_given_back() -> Iterator[Fault]:
    """empty_host_cache() does nothing, or gives away what is in use."""

    def nothing(call: Call) -> None:
        """The cache stays."""

    def half(call: Call) -> None:
        pinned = machine().pinned
        for size, count in list(pinned._cached.items()):
            keep = -(-count // 2)
            pinned._allocated.add(-size * (count - keep))
            pinned._cached[size] = keep

    def live(call: Call) -> None:
        call.forward()
        for found in gc.get_objects():
            if (
                isinstance(found, torch.Tensor)
                and found.device.type == "cpu"
                and machine().pinned.is_pinned(found)
            ):
                found.zero_()

    def registered(call: Call) -> None:
        call.forward()
        for found in gc.get_objects():
            host = isinstance(found, torch.Tensor) and found.device.type == "cpu" and found.numel()
            if host and machine().pinned._registered.end_around(found.data_ptr()) is not None:
                found.zero_()

    for body in (nothing, half, live, registered):
        make = partial(faulty, {"empty_host_cache": body})
        yield Fault("empty_host_cache", body.__name__, HOOKS["empty_host_cache"].doc, make)


@operator("release")
def limits_do_not_limit() -> Iterator[Fault]:
    """set_memory_fraction() limits something else than it says."""
    told = HOOKS["set_memory_fraction"].doc

    def never(call: Call) -> None:
        machine().index_of(call.arguments[0])
        machine().initialize()

    def percent(call: Call) -> None:
        call.honest(call.arguments[0], call.arguments[1] / 100)

    def double(call: Call) -> None:
        call.honest(call.arguments[0], min(1.0, call.arguments[1] * 2))

    def of_free(call: Call) -> None:
        call.forward()
        device = machine().device(call.arguments[0])
        device.allocator.limit = int(device.memory.free * call.arguments[1] / 2)

    def once(call: Call) -> None:
        if call.number == 1:
            call.forward()

    def anything(call: Call) -> None:
        fraction = call.arguments[1]
        call.honest(call.arguments[0], min(max(fraction, 0.0), 1.0) if fraction == fraction else 1.0)

    for body in (never, percent, double, of_free, once, anything):
        make = partial(faulty, {"set_memory_fraction": body})
        yield Fault("set_memory_fraction", body.__name__, told, make)


@operator("release")
def history_is_not_recorded() -> Iterator[Fault]:
    """record_memory_history() records nothing, or for ever."""
    told = HOOKS["record_memory_history"].doc

    def never(call: Call) -> None:
        machine().index_of(call.arguments[0])

    def forever(call: Call) -> None:
        call.honest(call.arguments[0], True)

    def inverted(call: Call) -> None:
        call.honest(call.arguments[0], not call.arguments[1])

    for body in (never, forever, inverted):
        make = partial(faulty, {"record_memory_history": body})
        yield Fault("record_memory_history", body.__name__, told, make)
