"""Private pools: what is allocated inside is served from them, and goes back with them."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from devicekit_conformance.context import MIB
from devicekit_conformance.crossing import KINDS
from devicekit_conformance.effects import effect
from devicekit_conformance.effects.limits import total_of
from devicekit_conformance.measures import BLOCK, GIB
from devicekit_conformance.trial import Trial

if TYPE_CHECKING:
    import torch


_LARGE = 96 * MIB


_SMALL = (512, 100_000, 1 << 20)  # bytes; allocators keep such blocks apart from larger ones


_THOROUGH = 8  # calls; later ones are about what may be another in their situation


@effect("memory_pool")
def memory_pool(trial: Trial) -> None:
    with trial.current(trial.index):
        with trial.current((trial.others or [trial.index])[0]):
            first = trial.call(trial.index)
        second = trial.call(trial.index)
        trial.expect(first is not second, "two pools are one")
        if not trial.ctx.claims("memory_pools") or not trial.ctx.claims("caching_allocator"):
            return
        roomy = (total_of(trial, trial.index) or 0) >= 2 * GIB
        size = BLOCK + MIB * 2 if roomy else 12 * MIB
        free_address = _address(trial, size)
        if _address(trial, size) != free_address:
            return  # this allocator hands nothing out again, so nothing can be told from addresses
        with first.use():
            inside = trial.tensor(size).fill_(8)
        trial.expect(inside.data_ptr() != free_address, "memory of the common cache was served inside use()")
        other = trial.tensor(size).fill_(9)
        trial.expect(bool((inside == 8).all().item()), "a block from the pool was overwritten")
        address = inside.data_ptr()
        del inside, other
        outside = [trial.tensor(size) for _ in range(2)]
        trial.expect(
            address not in [one.data_ptr() for one in outside], "memory of the pool was served outside"
        )
        with second.use():
            strange = trial.tensor(size)
        trial.expect(strange.data_ptr() != address, "memory of one pool was served by another")
        with first.use():
            again = trial.tensor(size)
        trial.equal(again.data_ptr(), address, "the block that the pool hands out again")
        del again, strange
        _serves_small_ones(trial, first)
        with first.use():
            elsewhere = trial.in_a_thread(lambda: trial.tensor(size))
        trial.expect(elsewhere.data_ptr() != address, "the pool served another thread, outside of the block")
        del elsewhere
        outside += _after_another(trial, first, second, size, address)
        for kind in KINDS:
            try:
                with first.use():
                    raise kind
            except BaseException as error:
                if type(error) is not kind:
                    raise
            else:
                trial.fail(f"use() swallowed {kind.__name__}")
            after = trial.tensor(size)
            served = after.data_ptr() == address
            trial.expect(not served, f"after {kind.__name__} inside use(), the pool still serves")
            outside.append(after)
        del outside, after, first, second
        trial.answers.clear()  # which holds the pools
        if trial.calls[0] <= _THOROUGH:
            _goes_back(trial, 3 * MIB)


def _serves_small_ones(trial: Trial, pool: Any) -> None:
    """What is allocated inside comes from the pool, however small it is."""
    for size in _SMALL:
        common = _address(trial, size)
        if _address(trial, size) != common:
            continue  # it is handed out once only
        with pool.use():
            inside = trial.tensor(size)
        address = inside.data_ptr()
        told = f"{size} bytes of the common cache were served inside use()"
        trial.expect(address != common, told)
        del inside
        outside = trial.tensor(size)
        trial.expect(outside.data_ptr() != address, f"{size} bytes of the pool were served outside")
        del outside


def _goes_back(trial: Trial, size: int) -> None:
    """What a pool took goes back once nobody holds the pool, and nothing that is in use is in it."""
    if not callable(getattr(trial.runtime, "empty_cache", None)):
        return
    trial.drop_cache()
    before = trial.ctx.probe.held(trial.index)
    pool: Any = trial.ctx.raw_hook(trial.hook)(trial.index)  # what the trial calls, it keeps
    with pool.use():
        block = trial.tensor(size).fill_(6)
        large = _LARGE if (total_of(trial, trial.index) or 0) >= 2 * GIB else size
        freed = trial.tensor(large)
    address = freed.data_ptr()
    del freed
    common = trial.tensor(large)
    trial.expect(common.data_ptr() != address, f"a block of {large} bytes of the pool was served outside")
    del pool, common
    gc.collect()
    trial.drop_cache()
    over = [trial.filled(size, 9) for _ in range(3)]
    trial.expect(bool((block == 6).all().item()), "a block of a pool that nobody holds was overwritten")
    del block, over
    trial.drop_cache()
    after = trial.ctx.probe.held(trial.index)
    told = f"the device held {before} bytes before a pool was made, and {after} once nobody held it"
    trial.expect(before is None or after is None or after <= before, told)


def _after_another(trial: Trial, first: Any, second: Any, size: int, address: int) -> list[torch.Tensor]:
    """After a block within the block, the pool serves again: another pool's, its own, or a graph's capture."""
    made = []
    insides: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "another pool's": second.use, "its own": first.use,
    }  # fmt: skip
    if trial.ctx.claims("graphs") and trial.has("create_graph"):
        insides["a capture's"] = lambda: trial.other("create_graph", trial.index).capture()
    for whose, inside in insides.items():
        with first.use():
            with inside():
                pass
            block = trial.tensor(size)
        trial.equal(
            block.data_ptr(), address, f"after {whose} block within the pool's, the block that is served"
        )
        del block
        after = trial.tensor(size)
        served = after.data_ptr() == address
        trial.expect(not served, f"after {whose} block within the pool's, the pool serves outside")
        made.append(after)
    return made


def _address(trial: Trial, size: int) -> int:
    block = trial.tensor(size)
    address = block.data_ptr()
    del block
    return address
