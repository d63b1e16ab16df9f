"""What was renamed is still there under its old name for one release, and says its new one."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from devicekit.memory.rows import RequestTable
from devicekit.scheduling.batch import ForwardBatch

OLD = [
    ("devicekit.scheduling.kv", "RequestKV"),
    ("devicekit.scheduling.kv", "Tier"),
    ("devicekit.scheduling.pools.paired", "PairedKV"),
    ("devicekit.scheduling.pools.snapshots", "SnapshotKV"),
    ("devicekit.scheduling.pools.host_tier", "HostTier"),
    ("devicekit.scheduling.pools.host_tier", "attach_host_tier"),
    ("devicekit.scheduling.pools.choice", "build_kv"),
    ("devicekit.scheduling.agreement", "Agreement"),
    ("devicekit.scheduling.agreement", "Alone"),
    ("devicekit.scheduling.agreement", "everywhere"),
    ("devicekit.scheduling.ranks.scheduler", "RankedScheduler"),
    ("devicekit.dispatch", "classify"),
    ("devicekit.dispatch", "raise_as_hook_error"),
    ("devicekit.opening", "device_of"),
    ("devicekit.opening", "get_device"),
    ("devicekit.opening", "use"),
    ("devicekit.generic", "register"),
    ("devicekit.available", "AvailableMemory"),
    ("devicekit.available", "available_memory"),
    ("devicekit.available", "empty_device_cache"),
    ("devicekit.engine_config", "EngineConfig"),
    ("devicekit.engine_config", "plan_pool"),
    ("devicekit.engine_verbs", "EngineVerbs"),
    ("devicekit.generation", "Generation"),
    ("devicekit.generation", "IncrementalText"),
]


@pytest.mark.parametrize(("module", "name"), OLD)
def test_an_old_name_works_and_says_the_new_one(module: str, name: str) -> None:
    old = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=rf"{name} is now devicekit\.") as warned:
        found = getattr(old, name)
    place, _, new = str(warned[0].message).split(" is now ")[1].split(";")[0].rpartition(".")
    assert found is getattr(importlib.import_module(place), new)


def test_a_name_that_never_was_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"devicekit\.scheduling\.kv' has no attribute 'Requests'"):
        importlib.import_module("devicekit.scheduling.kv").Requests  # noqa: B018


def test_the_arrays_of_a_batch_are_read_under_their_old_names() -> None:
    count = np.arange(3, dtype=np.int32)
    batch = ForwardBatch(
        input_ids=count,
        positions=count,
        slot_mapping=count.astype(np.int64),
        req_pool_indices=count[:1],
        query_start_loc=count[[0, 2]],
        seq_lens=count[2:],
        table=RequestTable(1, 1),
        page_size=4,
        logits_indices=count[2:],
    )
    for old, new in [
        ("tokens", "input_ids"),
        ("slots", "slot_mapping"),
        ("rows", "req_pool_indices"),
        ("starts", "query_start_loc"),
        ("lengths", "seq_lens"),
        ("wanted", "logits_indices"),
    ]:
        with pytest.warns(DeprecationWarning, match=rf"ForwardBatch\.{old} is now \.{new};"):
            assert getattr(batch, old) is getattr(batch, new)
    with pytest.raises(AttributeError, match="no attribute 'sequences'"):
        batch.sequences  # noqa: B018
