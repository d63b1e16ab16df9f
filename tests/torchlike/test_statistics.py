"""Unknown stays unknown when a vendor's counters are read."""

from __future__ import annotations

import dataclasses

import pytest

from devicekit.contract import AllocatorState, HostMemoryStats, MemoryStats
from devicekit.torchlike import statistics


def test_no_counters_at_all_mean_that_nothing_was_initialised() -> None:
    assert statistics.memory_stats({}, "torch.acme") == MemoryStats(
        AllocatorState.UNINITIALISED, "torch.acme"
    )


@pytest.mark.parametrize("field", statistics.KEYS)
def test_a_key_is_a_value_and_its_absence_is_unknown(field: str) -> None:
    raw = {key: 7 for name, key in statistics.KEYS.items() if name != field}
    found = statistics.memory_stats(raw, "torch.acme")
    assert getattr(found, field) is None
    assert {getattr(found, name) for name in statistics.KEYS if name != field} == {7}
    assert (
        statistics.memory_stats({**raw, statistics.KEYS[field]: 0}, "torch.acme").__getattribute__(field) == 0
    )


def test_every_number_of_the_record_has_a_key() -> None:
    numbers = {one.name for one in dataclasses.fields(MemoryStats)} - {"state", "source", "raw"}
    assert set(statistics.KEYS) == numbers


def test_the_documented_name_of_the_count_is_not_looked_up() -> None:
    raw = {"allocated.all.current": 3, "segment.all.current": 5}
    assert statistics.memory_stats(raw, "torch.acme").num_segments == 5


def test_an_untrusted_counter_is_believed_once_it_moved() -> None:
    raw = {
        "allocated_bytes.all.current": 0,
        "active_bytes.all.current": 0,
        "num_ooms": 0,
        "num_alloc_retries": 2,
    }
    kept = statistics.maintained(raw, frozenset({"allocated_bytes"}))
    assert kept == {"allocated_bytes.all.current": 0, "num_alloc_retries": 2}


def test_the_host_caches_words_are_shifted_by_one() -> None:
    raw = {"allocated_bytes.current": 8192, "active_bytes.current": 4096, "reserved_bytes.current": 1}
    assert statistics.host_memory_stats(raw) == HostMemoryStats(allocated=4096, reserved=8192)
    assert statistics.host_memory_stats({}) == HostMemoryStats()
