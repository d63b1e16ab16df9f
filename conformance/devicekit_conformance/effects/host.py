"""Pinned memory and memory that processes share."""

from __future__ import annotations

import pickle
from typing import Any

import torch

from devicekit_conformance.context import MIB
from devicekit_conformance.effects import effect
from devicekit_conformance.effects.locking import lock_and_unlock
from devicekit_conformance.measures import ROUNDING, granule
from devicekit_conformance.pages import NUMBERS, on_own_pages
from devicekit_conformance.trial import Trial

_LARGE = 65 * MIB + 3  # bytes


@effect("pin_memory")
def pin_memory(trial: Trial) -> None:
    whole = torch.arange(4096, dtype=torch.int32)
    for original in (
        whole.clone(),
        torch.linspace(-2, 2, 77, dtype=torch.float64).reshape(7, 11),
        whole.reshape(64, 64).t(),
        whole[100:200],
        torch.tensor(3.5),
        torch.zeros(2, 3, dtype=torch.bool),
        torch.full((3 * MIB,), 9, dtype=torch.uint8),
        torch.linspace(0, 1, 33).to(torch.bfloat16),
        torch.tensor([1 + 2j, 3 - 4j]),
        torch.tensor([1 + 2j, 3 - 4j]).conj(),
        torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        torch.linspace(0, 1, 9, requires_grad=True),
        torch.empty(0, 3),
        whole[::3],
        torch.tensor([5.5, 6.5]).reshape(2, 1).expand(2, 40),
        torch.arange(77, dtype=torch.uint8),
        *([torch.full((_LARGE,), 5, dtype=torch.uint8)] if not trial.situation else []),
    ):
        kept = original.clone()
        pinned = trial.call(original)
        shape = tuple(original.shape)
        trial.expect(
            pinned.shape == original.shape and pinned.dtype == original.dtype,
            f"of a tensor {shape} of {original.dtype} it made one {tuple(pinned.shape)} of {pinned.dtype}",
        )
        trial.expect(pinned.device.type == "cpu", f"what it returned is on {pinned.device}")
        trial.expect(torch.equal(pinned, kept), f"of a tensor {shape} it made one with other contents")
        trial.expect(torch.equal(original, kept), "it changed the tensor that it was given")
        if not original.numel():
            continue  # no memory to lock
        trial.expect(
            trial.ctx.probe.pinned(pinned) is not False,
            f"what it made of {original.nbytes} bytes is not page-locked",
        )
        trial.expect(
            pinned.data_ptr() != original.data_ptr(), "what it returned is the original, and no copy"
        )
        twice = trial.call(pinned)
        trial.expect(twice.data_ptr() == pinned.data_ptr(), "pinning what is pinned made another copy")
        trial.expect(torch.equal(twice, kept), "pinning what is pinned changed it")
        for part in (pinned[-1:], pinned[..., ::2]) if pinned.ndim else ():
            again = trial.call(part)
            trial.expect(again.data_ptr() == part.data_ptr(), "pinning a part of what is pinned made a copy")
            trial.expect(torch.equal(again, part), "pinning a part of what is pinned changed it")
    _refuses(trial, torch.empty(64, device="meta"), "a tensor that is nowhere")
    if not trial.ctx.manifest.host:
        _refuses(trial, trial.tensor(4096), "a tensor that is not on the host")
    if trial.has("register_host_memory") and trial.has("unregister_host_memory"):
        trial.other("register_host_memory", whole)
        same = all(
            trial.other(trial.hook, one).data_ptr() == one.data_ptr()
            for one in (whole, whole[100:], whole[::3])
        )
        trial.other("unregister_host_memory", whole)
        trial.expect(same, "of memory that is registered it made a copy")


def _refuses(trial: Trial, tensor: torch.Tensor, what: str) -> None:
    try:
        trial.ctx.raw_hook(trial.hook)(tensor)
    except Exception:
        return
    trial.fail(f"it accepted {what}")


@effect("host_memory_stats")
def host_memory_stats(trial: Trial) -> None:
    found = trial.call()
    if trial.runtime is None or not (trial.has("pin_memory") and trial.ctx.claims("pinned_memory")):
        return
    pin = trial.ctx.raw_hook("pin_memory")
    block = trial.tensor(4096)
    _sound(trial, found := trial.call())
    told = repr(found)
    size = 3 * MIB + 4096
    kept = pin(torch.zeros(size, dtype=torch.uint8))
    now = trial.call()
    _sound(trial, now)
    if found.allocated is not None and now.allocated is not None:
        rise = now.allocated - found.allocated
        trial.expect(
            size <= rise <= 2 * size + ROUNDING, f"a pinned block of {size} bytes raised allocated by {rise}"
        )
    else:
        trial.expect(found.allocated is now.allocated, "allocated is known in one of two calls")
    trial.equal(repr(found), told, "a record that was returned before another call")
    if trial.has("register_host_memory") and trial.has("unregister_host_memory"):
        place = on_own_pages(MIB)
        trial.other("register_host_memory", place)
        _sound(trial, trial.call())
        trial.other("unregister_host_memory", place)
    del kept
    after = trial.call()
    _sound(trial, after)
    trial.equal(after.allocated, found.allocated, "allocated, after the pinned block was freed,")
    if trial.has("empty_host_cache"):
        trial.other("empty_host_cache")
        _sound(trial, trial.call())
    if after.reserved is not None and after.allocated is not None and now.reserved is not None:
        trial.expect(
            after.reserved >= after.allocated, f"allocated {after.allocated}, reserved {after.reserved}"
        )
    del block


def _sound(trial: Trial, found: Any) -> None:
    numbers = [one for one in (found.allocated, found.reserved) if one is not None]
    for name in ("allocated", "reserved"):
        value = getattr(found, name)
        trial.expect(value is None or (type(value) is int and value >= 0), f"{name} is {value!r}")
    if len(numbers) == 2:
        trial.expect(numbers[0] <= numbers[1], f"allocated is {numbers[0]} and reserved is {numbers[1]}")
    own = trial.own("host_memory_stats")
    if not isinstance(own, dict):
        return
    page = granule(numbers)
    for name, key in (("allocated", "active_bytes.current"), ("reserved", "allocated_bytes.current")):
        value, truth = getattr(found, name), own.get(key)
        if value is not None and truth is not None:
            near = value == truth or abs(value - truth) < page
            trial.expect(near, f"{name} is {value}, and torch itself counts {truth}")


@effect("export_ipc")
def export_ipc(trial: Trial) -> None:
    if not trial.ctx.claims("ipc"):
        return
    wanted = torch.arange(3000, dtype=torch.int32).view(torch.uint8)
    block = trial.tensor(wanted.nbytes)
    block.copy_(wanted)
    trial.finish()
    handle = trial.call(block)
    try:
        packed = pickle.dumps(handle)
        pickle.loads(packed)
    except Exception as error:
        trial.fail(f"the handle cannot be pickled: {type(error).__name__}: {error}")
    trial.expect(torch.equal(block.cpu(), wanted), "it changed the tensor that it was given")


@effect("is_bad_fork")
def is_bad_fork(trial: Trial) -> None:
    trial.expect(
        trial.call() is False, "it is True in a process that did not use the device before it was forked"
    )
    block = trial.tensor(4096)
    trial.expect(trial.call() is False, "it is True once the device is used")
    del block


@effect("is_pinned")
def is_pinned(trial: Trial) -> None:
    plain = torch.zeros(4096)
    trial.expect(trial.call(plain) is False, "it is True for memory that nobody pinned")
    trial.expect(trial.call(plain[100:]) is False, "it is True for a part of memory that nobody pinned")
    trial.call(torch.empty(0))  # which has no memory, so either may be said
    if trial.has("pin_memory") and trial.ctx.claims("pinned_memory"):
        for size in (16, 4096, 3 * MIB):
            pinned: Any = trial.ctx.raw_hook("pin_memory")(torch.zeros(size))
            trial.expect(trial.call(pinned) is True, "it is False for what pin_memory() returned")
            part = trial.ctx.raw_hook(trial.hook)(pinned[size // 2 :])
            trial.expect(part is True, "it is False for a part of what pin_memory() returned")
            trial.expect(
                trial.call(plain) is False, "it is True for plain memory, once other memory is pinned"
            )
    _by_other_roads(trial)


def _by_other_roads(trial: Trial) -> None:
    """Memory is page-locked whoever locked it: torch's own function, or another hook."""
    used = trial.tensor(4096)
    try:
        pinned = torch.zeros(4096).pin_memory()
    except (RuntimeError, NotImplementedError):
        pinned = None
    if pinned is not None and trial.ctx.probe.pinned(pinned) is True:
        trial.expect(trial.call(pinned) is True, "it is False for what torch's own pin_memory() returned")
    if trial.has("register_host_memory") and trial.has("unregister_host_memory"):
        place = on_own_pages()
        trial.other("register_host_memory", place)
        there = trial.ctx.raw_hook(trial.hook)(place)
        trial.other("unregister_host_memory", place)
        trial.expect(there is True, "it is False for registered memory")
        trial.expect(trial.call(place) is False, "it is True for memory that is registered no more")
        trial.other("register_host_memory", place[: NUMBERS // 4])
        part, apart = trial.call(place[10:100]), trial.call(place[NUMBERS * 3 // 4 :])
        trial.other("unregister_host_memory", place[: NUMBERS // 4])
        trial.expect(part is True, "it is False for a part of registered memory")
        trial.expect(
            apart is False, "it is True for memory that is not registered, where a part before it is"
        )
        if not trial.situation:
            lock_and_unlock(trial)
    del used


@effect("register_host_memory")
def register_host_memory(trial: Trial) -> None:
    if not trial.has("unregister_host_memory"):
        return
    for size in (64, 4096, MIB):
        tensor, plain = on_own_pages(size), torch.arange(size)
        address = tensor.data_ptr()
        trial.call(tensor)
        try:
            for name, one in (("the memory", tensor), ("a part of the memory", tensor[size // 2 :])):
                trial.expect(trial.ctx.probe.pinned(one) is not False, f"{name} is not page-locked after it")
            trial.expect(trial.ctx.probe.pinned(plain) is not True, "other memory is page-locked after it")
            trial.expect(tensor.data_ptr() == address, "it moved the tensor")
            trial.expect(torch.equal(tensor, torch.arange(size)), "it changed the tensor")
            _refuses(trial, tensor, "memory that is registered already")
            still = trial.ctx.probe.pinned(tensor) is not False
            trial.expect(still, "registered memory is not page-locked once it was refused again")
        finally:
            trial.other("unregister_host_memory", tensor.view(size))  # the memory counts, not the object
    if not trial.situation:
        lock_and_unlock(trial)
    whole = torch.zeros(64, 64)
    _refuses(trial, whole.t(), "a tensor that is not contiguous")
    _refuses(trial, torch.empty(0), "a tensor without elements")
    trial.expect(trial.ctx.probe.pinned(whole) is not True, "what it refused is page-locked after it")
    if trial.has("pin_memory") and trial.ctx.claims("pinned_memory"):
        pinned: Any = trial.ctx.raw_hook("pin_memory")(whole)
        _refuses(trial, pinned, "memory that is page-locked already")
    if not trial.ctx.manifest.host:
        _refuses(trial, trial.tensor(4096), "a tensor that is not on the host")


@effect("unregister_host_memory")
def unregister_host_memory(trial: Trial) -> None:
    if not trial.has("register_host_memory"):
        return
    if not trial.situation:
        lock_and_unlock(trial)
    tensor, kept = on_own_pages(), on_own_pages()
    for one in (kept, tensor):
        trial.other("register_host_memory", one)
    trial.call(tensor.view(64, -1))  # the memory counts, not the object
    trial.expect(trial.ctx.probe.pinned(tensor) is not True, "the memory is page-locked after it")
    trial.expect(
        trial.ctx.probe.pinned(kept) is not False, "other registered memory is not page-locked after it"
    )
    trial.expect(torch.equal(tensor, torch.arange(NUMBERS)), "it changed the tensor")
    trial.other("register_host_memory", tensor)  # it can be done again
    trial.expect(
        trial.ctx.probe.pinned(tensor) is not False, "the memory cannot be page-locked again after it"
    )
    trial.call(tensor)
    _refuses(trial, tensor, "memory that is registered no more")
    trial.call(kept)
    trial.expect(trial.ctx.probe.pinned(kept) is not True, "the memory is page-locked after it")
    _refuses(trial, torch.arange(4096), "memory that was never registered")
    trial.other("register_host_memory", tensor[: NUMBERS // 2])
    for other, what in ((tensor[100:101], "a part"), (tensor[:100], "the beginning"), (tensor, "more than")):
        _refuses(trial, other, f"{what} of the memory that is registered")
    trial.call(tensor[: NUMBERS // 2])
    trial.other("register_host_memory", tensor)
    trial.in_a_thread(lambda: trial.other(trial.hook, tensor))
    trial.expect(trial.ctx.probe.pinned(tensor) is not True, "another thread cannot undo it")
    if trial.has("pin_memory") and trial.ctx.claims("pinned_memory"):
        pinned: Any = trial.ctx.raw_hook("pin_memory")(torch.arange(4096))
        _refuses(trial, pinned, "memory that pin_memory() locked")
        trial.expect(trial.ctx.probe.pinned(pinned) is not False, "it unlocked what pin_memory() locked")
