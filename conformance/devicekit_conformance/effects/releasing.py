"""What is emptied is given back, and what is in use stays."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch

from devicekit_conformance.context import MIB
from devicekit_conformance.effects import effect
from devicekit_conformance.live import Live
from devicekit_conformance.measures import BLOCK, ROUNDING, block_of
from devicekit_conformance.pages import NUMBERS, on_own_pages
from devicekit_conformance.probe import Token
from devicekit_conformance.trial import Trial


@effect("empty_cache")
def empty_cache(trial: Trial) -> None:
    probe = trial.ctx.probe
    if (
        trial.situation and probe.initialised() is False
    ):  # the very first call is for what is there to be emptied
        trial.call()
        trial.call()
        trial.expect(probe.initialised() is not True, "it initialised a device that nobody uses")
    for index in range(trial.count):
        trial.work(index=index)  # what it needs is made once, and stays
    trial.finish()
    trial.own("empty_cache")
    start = _taken(trial)
    live = Live(trial)
    kept = _taken(trial)
    _cache(trial, live)
    tokens = _work_everywhere(trial, live)
    _leave_to_streams(trial, live)
    peaks = _peaks(trial)
    in_use = {index: _Taken(kept[index].held, now.in_use) for index, now in _taken(trial).items()}
    trial.call()
    trial.equal(_peaks(trial), peaks, "the peak of what was allocated, on each device,")
    _are_done(trial, tokens)
    live.check("after it")
    if trial.ctx.claims("caching_allocator"):
        for index, more in _unused(trial, in_use).items():
            trial.fail(f"device {index} still holds {more} bytes that nobody uses, on some stream")
        trial.own("empty_cache")
    del tokens  # and what the work took
    over = [trial.tensor(2 * MIB, index).fill_(1) for index in range(trial.count) for _ in range(3)]
    live.check("after it and new allocations")
    del over
    live.drop()
    peaks = _peaks(trial)
    trial.call()
    trial.equal(_peaks(trial), peaks, "with nothing in use, the peak of what was allocated, on each device,")
    if trial.ctx.claims("caching_allocator"):
        for index, more in _unused(trial, start).items():
            trial.fail(
                f"with nothing in use, device {index} holds {more} bytes more after it than before use"
            )


def _leave_to_streams(trial: Trial, live: Live) -> None:
    """Free blocks that other streams, which work, were said to use."""
    for index in range(trial.count):
        side: Any
        for side in live.streams[index]:
            block = trial.tensor(BLOCK, index)
            with contextlib.suppress(RuntimeError, NotImplementedError, TypeError):
                block.record_stream(side)
            del block


def _work_everywhere(trial: Trial, live: Live) -> list[tuple[int, Token]]:
    return [
        (index, token)
        for index in range(trial.count)
        for stream in (None, *live.streams[index])
        if (token := trial.long_work(stream, index)) is not None
    ]


def _are_done(trial: Trial, tokens: list[tuple[int, Token]]) -> None:
    for index, token in tokens:
        trial.expect(token.done(), f"work on device {index} was pending when it returned: it synchronises")


class _Taken(NamedTuple):
    held: int | None  # from the driver
    in_use: object  # by tensors, as torch counts


def _taken(trial: Trial) -> dict[int, _Taken]:
    return {
        index: _Taken(trial.ctx.probe.held(index), trial.own("memory_allocated", index))
        for index in range(trial.count)
    }


def _unused(trial: Trial, wanted: dict[int, _Taken]) -> dict[int, int]:
    """How many bytes more each device holds than is wanted, and could give back."""
    left = _taken(trial)
    more = {
        index: now - most
        for index, (most, _) in wanted.items()
        if most is not None and (now := left[index].held) is not None and now > most + _slack(trial)
    }
    if not more or not callable(getattr(trial.runtime, "empty_cache", None)):
        return more
    # An arena for small blocks may be kept for good: then the runtime's own function does not give it back either.
    trial.own("empty_cache")
    return {
        index: one
        for index, one in more.items()
        if trial.ctx.probe.held(index) != left[index].held or left[index].in_use != wanted[index].in_use
    }


def _peaks(trial: Trial) -> list[object]:
    counted = [trial.own("memory_stats", index) for index in range(trial.count)]
    return [one.get("allocated_bytes.all.peak") if isinstance(one, dict) else None for one in counted]


def _slack(trial: Trial) -> int:
    return 0 if trial.runtime is not None else ROUNDING


def _cache(trial: Trial, live: Live) -> None:
    """Leave freed blocks of every size in the cache of every device and stream."""
    for index in range(trial.count):
        block = block_of(trial, index)
        for stream in (None, *live.streams[index]):
            with trial.current(index), trial.on(stream):
                blocks = [trial.tensor(size, index) for size in (4096, MIB * 3, block, block, 5 * block)]
                blocks.append(trial.tensor(8 * block, index))
            trial.finish()
            del blocks


@effect("empty_host_cache")
def empty_host_cache(trial: Trial) -> None:
    if trial.runtime is None or not (trial.has("pin_memory") and trial.ctx.claims("pinned_memory")):
        trial.call()
        trial.call()
        return
    used = trial.tensor(4096)  # nothing is counted before the device is used
    pin: Any = trial.ctx.raw_hook("pin_memory")
    live: list[torch.Tensor] = [pin(torch.full((MIB + extra,), 7, dtype=torch.uint8)) for extra in (0, 5000)]
    live.append(pin(torch.full((MIB,), 7, dtype=torch.uint8))[4096:])  # in use by a part of it only
    uploaded = _pending_upload(trial, pin)
    gone = [pin(torch.zeros(MIB << number, dtype=torch.uint8)) for number in (0, 0, 0, 1, 1, 2)]
    before = _reserved(trial)
    del gone
    registers = trial.has("register_host_memory") and trial.has("unregister_host_memory")
    place = on_own_pages()
    if registers:
        trial.other("register_host_memory", place)
    trial.call()
    after = _reserved(trial)
    locked = [trial.ctx.probe.pinned(one) is not False for one in (*live, *([place] if registers else []))]
    trial.expect(all(locked), "pinned or registered memory in use is not page-locked any more")
    trial.expect(torch.equal(place, torch.arange(NUMBERS)), "registered memory in use holds other data")
    if registers:
        trial.other("unregister_host_memory", place)
    trial.expect(all(bool((one == 7).all()) for one in live), "pinned memory in use holds other data")
    over = [pin(torch.full((MIB,), 9, dtype=torch.uint8)) for _ in range(3)]
    trial.finish()
    arrived = bool((uploaded.cpu() == 8).all())
    trial.expect(arrived, "a copy from pinned memory that was pending wrote other data")
    del over
    if before is None or after is None:
        return
    trial.expect(
        after < before, f"{before} bytes of pinned memory were held, most of them unused, and {after} are"
    )
    in_use = sum(one.untyped_storage().nbytes() for one in live)
    trial.expect(
        after <= 2 * in_use + MIB,
        f"{in_use} bytes of pinned memory are in use, and {after} are held after it",
    )
    del live, used


def _pending_upload(trial: Trial, pin: Any) -> torch.Tensor:
    """What is copied to, behind other work, from pinned memory that nobody holds any more."""
    target = trial.tensor(MIB)
    trial.long_work()
    target.copy_(pin(torch.full((MIB,), 8, dtype=torch.uint8)), non_blocking=True)
    return target


def _reserved(trial: Trial) -> int | None:
    own = trial.own("host_memory_stats")
    if isinstance(own, dict) and "allocated_bytes.current" in own:
        return int(own["allocated_bytes.current"])
    if trial.has("host_memory_stats"):
        found: Any = getattr(trial.other("host_memory_stats"), "reserved", None)
        return found if isinstance(found, int) else None
    return None


@effect("collect_ipc")
def collect_ipc(trial: Trial) -> None:
    live = Live(trial)
    exports = trial.ctx.claims("ipc") and trial.has("export_ipc") and trial.runtime is not None
    handles = [trial.other("export_ipc", block) for block in live.blocks()] if exports else []
    trial.call()
    trial.call()
    live.check("after it")
    del handles
