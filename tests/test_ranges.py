"""Numbers that a setting cannot be: told where they are given, in every part that can be had alone."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch

import devicekit
from devicekit import engine, fleet, memory, observe, release, residency, scheduling
from devicekit.contract.errors import ConfigurationError

LAYOUT = memory.KVLayout(
    num_layers=2, num_kv_heads=2, key_dim=8, value_dim=8, dtype=torch.float16, windows=(None, 8)
)
STATES = memory.StateLayout((memory.StateTensor(0, "conv", (4,), torch.float32),))
ROOMS = (engine, memory, scheduling, residency, release, observe, fleet)

Part = Callable[..., object]

# Public, with numbers that devicekit writes there itself.
MADE_HERE = {
    "Allocation", "Answer", "Baseline", "Blocker", "BlocksStored", "Conservation", "Finish",
    "ForwardBatch", "Generation", "KVPlan", "Limit", "LogLine", "Mark", "Match", "MemberOutcome",
    "Metric", "Output", "PointCounters", "PrefixStats", "ReleaseEntry", "Released", "ReplayReport",
    "RequestReport", "Sample", "Span", "StageSummary", "StateTensor", "Step", "Tally", "TokenLogprob",
    "TreeSanity", "VersionSpan",
}  # fmt: skip
# What the scheduler answers with a refusal, what a device measured, and what reaches a part that is tried here.
ELSEWHERE = {
    "Request", "SamplingParams", "Drain", "Flush", "Pause", "plan_pool(available)",
    "plan_kv(available_bytes)", "tend(timeout)",
}  # fmt: skip


def parts() -> Iterator[partial[Any]]:
    """What takes numbers from whoever builds an engine, with arguments that are right."""
    device = devicekit.get_device("cpu")
    yield partial(
        engine.EngineConfig, page_size=16, max_running=4, max_batch_tokens=64, memory_fraction=0.9,
        reserve_bytes=0, kv_tokens=64, host_kv_tokens=0, state_snapshots=0, window_kv_tokens=0,
        conservativeness=1.0, random_seed=0, tensor_parallel=1, max_slowdown=4.0,
    )  # fmt: skip
    yield partial(memory.KVLayout, num_layers=1, num_kv_heads=1, key_dim=1, value_dim=1, dtype=torch.float16)
    yield partial(memory.PageAllocator, num_pages=4)
    yield partial(memory.RequestTable, num_rows=4, pages_per_row=4, tokens_per_row=16)
    yield partial(memory.PrefixCache, memory.PageAllocator(8), page_size=4)
    yield partial(memory.EventFeed, print, page_size=4)
    yield partial(memory.KVPool, device, LAYOUT, num_pages=4, page_size=4, window_pages=4)
    yield partial(memory.HostKVPool, device, memory.KVPool(device, LAYOUT, 4, 4), num_pages=4)
    yield partial(memory.StatePool, device, STATES, num_slots=4, snapshots=1)
    yield partial(
        memory.plan_kv, 10**9, LAYOUT, page_size=16, max_running=4, max_positions=64, fraction=0.9,
        reserve_bytes=0, min_tokens=2, max_tokens=100,
    )  # fmt: skip
    yield partial(
        scheduling.SchedulerLimits, num_pages=8, page_size=4, max_running=4, max_batch_tokens=64,
        conservativeness=1.0, window_pages=4, state_snapshots=0, max_slowdown=4.0,
    )  # fmt: skip
    yield partial(
        scheduling.ModelLimits, vocab_size=9, max_positions=64, eos_token_ids=frozenset(), window=4,
        partial_window=4,
    )  # fmt: skip
    yield partial(residency.LayerwiseOffload, prefetch=1, resident_layers=0)
    yield partial(residency.LargeReleaseRule, large=1)
    yield partial(residency.Residency, {}, device, prefetch_margin=0)
    yield partial(release.interval, seconds=1.0)
    yield partial(release.when_reclaimable, size=1)
    yield partial(release.ReleasePolicy, "interval", seconds=1.0, minimum_interval=0.0)
    yield partial(release.ReleasePolicy, "when_reclaimable", bytes=1)
    yield partial(release.ReleasePoints, device, keep=8)
    yield partial(release.Ledger, keep=8)
    yield partial(observe.Recorder, device, interval=1.0, keep=8)
    yield partial(observe.StageProfiler, device, keep=8)
    yield partial(observe.Tracer, device, capacity=8)
    yield partial(observe.Track, depth=8)
    yield partial(observe.OnOutOfMemory, lambda *_: False, attempts=1)
    yield partial(fleet.FleetUpdate, cast("fleet.Fleet", None), timeout=1.0, at_once=1)
    yield partial(fleet.DnsMembers, "engines", port=30000)


def numbers(part: Part) -> dict[str, type]:
    """The parameters that are one number, or one or nothing, each with its type."""
    kinds = {"int": int, "int | None": int, "float": float, "float | None": float}
    written = inspect.signature(part).parameters
    return {name: kinds[one.annotation] for name, one in written.items() if one.annotation in kinds}


def wrong_for(kind: type) -> tuple[object, ...]:
    wrong: tuple[object, ...] = (float("nan"), float("inf"), -float("inf"), "3", True, [], -1, -(10**5000))
    return (*wrong, 1.5) if kind is int else (*wrong, 10**400)


def shown(wrong: object) -> str:
    digits = isinstance(wrong, int) and abs(wrong) > 10**4000
    return "a number of thousands of digits" if digits else f"{wrong!r:.80}"


def test_a_number_that_a_setting_cannot_be_is_refused_where_it_is_given() -> None:
    taken = []
    for part in parts():
        part()
        kinds = numbers(part.func)
        for name in part.keywords.keys() & kinds.keys():
            for wrong in wrong_for(kinds[name]):
                try:
                    part(**{name: wrong})
                except ConfigurationError as refusal:
                    told = f"not {shown(wrong)}" in str(refusal)
                else:
                    told = False
                if not told:
                    taken.append(f"{part.func.__name__}({name}={shown(wrong)})")
    assert not taken


def test_every_part_that_takes_numbers_is_tried() -> None:
    tried = {f"{part.func.__name__}({name})" for part in parts() for name in part.keywords}
    public = {
        title: one
        for room in ROOMS
        for title in room.__all__
        if callable(one := getattr(room, title))
        and not (isinstance(one, type) and issubclass(one, (BaseException, enum.Enum)))
        and not title.endswith("Reply")
    }
    found = {
        f"{title}({name})"
        for title, one in public.items()
        if title not in MADE_HERE | ELSEWHERE
        for name in numbers(one)
    }
    assert found - tried == ELSEWHERE & found
