from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import devicekit
from devicekit import MemoryInfo, hookimpl
from devicekit.contract.errors import HookError, InvalidHooks
from tests.required import Required


def backend_with(
    memory_info: Callable[[int], object], synchronize: Callable[[int], object] = lambda index: None
) -> type:
    class Backend(Required):
        @hookimpl
        def device_count(self) -> int:
            return 2

        @hookimpl
        def synchronize(self, index: int) -> None:
            synchronize(index)

        @hookimpl
        def memory_info(self, index: int) -> object:
            return memory_info(index)

        @hookimpl
        def empty_cache(self) -> None: ...

    return Backend


def lost(index: int) -> object:
    raise ValueError("lost")


class Watch:
    def __init__(self) -> None:
        self.seen: list[object] = []

    @hookimpl(wrapper=True)
    def memory_info(self, index):
        result = yield
        self.seen.append((index, result))
        return result


def test_an_optional_claim_holds_where_its_hooks_are_present(register):
    device = register(
        backend_with(memory_info=lambda index: None),
        capabilities=["driver_memory"],
        optional=["graphs", "caching_allocator", "driver_memory"],
    )
    assert device.backend.capabilities == {"driver_memory"}


def test_one_hook_is_wrapped_and_the_others_keep_their_direct_path(register):
    info = MemoryInfo(1, 2)
    device = register(backend_with(memory_info=lambda index: info))
    direct = device.backend.function("synchronize")
    watch = Watch()
    device.backend.add_observer(watch)
    assert device.memory_info() is info
    assert watch.seen == [(0, info)]
    assert device.backend.function("synchronize") == direct
    before = device.backend.function("memory_info")
    device.backend.remove_observer(watch)
    device.memory_info()
    assert len(watch.seen) == 1
    assert device.backend.function("memory_info") != before
    assert device.backend.function("memory_info").__self__ is device.backend.plugin


def test_a_device_opened_later_is_observed_as_well(register):
    register(backend_with(memory_info=lambda index: MemoryInfo(index)), indexed=True)
    watch = Watch()
    devicekit.get_device("acme").backend.add_observer(watch)
    devicekit.get_device("acme:1").memory_info()
    assert watch.seen == [(1, MemoryInfo(1))]


def test_several_observers_nest_and_each_sees_the_backends_answer(register):
    info = MemoryInfo(1, 2)
    device = register(backend_with(memory_info=lambda index: info))
    watches = [Watch(), Watch()]
    for watch in watches:
        device.backend.add_observer(watch)
    device.memory_info()
    assert [watch.seen for watch in watches] == [[(0, info)]] * 2


def test_an_observer_that_implements_a_hook_is_refused_and_leaves_no_trace(register):
    device = register(backend_with(memory_info=lambda index: MemoryInfo(1, 2)))

    class Impostor:
        @hookimpl
        def memory_info(self, index):
            return MemoryInfo(99, 99)

    with pytest.raises(InvalidHooks, match=r"must wrap hooks .*memory_info") as caught:
        device.backend.add_observer(Impostor())
    assert caught.value.problems == ("memory_info",)
    assert device.memory_info() == MemoryInfo(1, 2)


@pytest.mark.parametrize("trylast", [False, True])
def test_an_observer_cannot_put_its_answer_in_place_of_the_backends(register, trylast):
    device = register(backend_with(memory_info=lambda index: MemoryInfo(1, 2)))

    class Forger:
        @hookimpl(wrapper=True, trylast=trylast)
        def memory_info(self, index):
            yield
            return MemoryInfo(99, 99)

    device.backend.add_observer(Forger())
    with pytest.raises(InvalidHooks, match=r"'acme'.*answered for it"):
        device.memory_info()


def test_an_observer_cannot_hide_that_the_backend_failed(register):
    device = register(backend_with(memory_info=lost))

    class Swallower:
        @hookimpl(wrapper=True)
        def memory_info(self, index):
            try:
                return (yield)
            except ValueError:
                return MemoryInfo(0, 0)

    device.backend.add_observer(Swallower())
    with pytest.raises(InvalidHooks, match="answered for it"):
        device.memory_info()


def test_an_observer_may_raise(register):
    device = register(backend_with(memory_info=lambda index: MemoryInfo(1, 2)))

    class Limit:
        @hookimpl(wrapper=True)
        def memory_info(self, index):
            yield
            raise torch.OutOfMemoryError("over the limit")

    device.backend.add_observer(Limit())
    with pytest.raises(torch.OutOfMemoryError):
        device.memory_info()


def test_observed_calls_nest_and_raise_under_the_hooks_name(register):
    device = register(backend_with(MemoryInfo, synchronize=lost))

    class Outer:
        @hookimpl(wrapper=True)
        def empty_cache(self):
            with pytest.raises(HookError, match=r"synchronize of backend .* failed: ValueError: lost"):
                device.synchronize()
            return (yield)

        @hookimpl(wrapper=True)
        def synchronize(self, index):
            return (yield)

    device.backend.add_observer(Outer())
    assert device.release_cache()
