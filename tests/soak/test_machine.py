"""The soak's own machine: runs repeat themselves, and what is broken is found, and found again in fewer steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import devicekit
from devicekit.memory.rows import RequestTable
from devicekit.scheduling.verbs.flush import FlushHandler
from tests.soak.machine import LENGTH, Violation, run, shrunk
from tests.soak.planted_faults import FAULTS, canonical
from tests.soak.pools import POOLS, soak_pools
from tests.soak.workers import repeat


def test_a_run_repeats_itself() -> None:
    assert run(12) == run(12)
    assert run(12) != run(13)


def test_a_row_that_is_never_given_back_is_found_and_found_again_in_few_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RequestTable, "give_one", lambda self, row: None)
    with pytest.raises(Violation, match="rows"):
        run(1)
    kept = shrunk(1)
    assert len(kept) < 6
    with pytest.raises(Violation, match="rows"):
        run(1, kept)
    assert repeat(1, kept) == f"python -m tests.soak --run 1 --only {','.join(map(str, kept))}"


def test_an_operation_that_is_never_answered_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlushHandler, "_poll", lambda self, waiter: None)
    found = ""
    for seed in range(20):
        try:
            run(seed)
        except Violation as error:
            found += str(error)
    assert "is not answered at" in found


def test_every_fault_that_is_to_be_planted_has_its_place_in_the_code() -> None:
    package = Path(devicekit.__file__).parent
    read = {name: canonical((package / name).read_text("utf-8")) for name in {one.file for one in FAULTS}}
    lost = [one.name for one in FAULTS if read[one.file].count(one.old) != 1]
    assert not lost


def test_a_few_operations_on_every_pool_conserve() -> None:
    found = soak_pools(2000, seed=3)
    assert found.keys() == POOLS.keys()
    assert [one for one in found.values() if "violation" in one] == []


def test_the_command_counts_what_it_did_and_stops_where_it_was_told() -> None:
    command = [sys.executable, "-m", "tests.soak", "--parts", "control", "--steps", "100", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    control = json.loads(done.stdout)["control"]
    assert (control["runs"], control["control_steps"]) == (2, 2 * LENGTH)
    assert control["violations"] == []
    assert control["operations"] > 0 < control["requests"]
