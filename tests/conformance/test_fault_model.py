"""The fault model covers the contract, and a sample of it is caught."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest

from devicekit.contract import HOOKS
from tests.seeds import drawn_seed
from tools.warm import Warm

_SEED = drawn_seed("FAULT_MODEL_SEED")
# The simulated machine lives in one process, so that faults of its shared events are written by hand.
_WRITTEN = {"export_event", "import_event"}
_SCRIPT = """
import json, sys
from devicekit_conformance.selftest.model import PROBE, derived
from devicekit_conformance.selftest.quick import judge, prepare
prepare()
found = {name: judge(derived()[name].address, PROBE, derived()[name].fault.hook) for name in sys.argv[1:]}
print(json.dumps({name: [one.status, one.requirement, one.message] for name, one in found.items()}))
"""
_LIST = """
import json
from devicekit_conformance.selftest.model import derived
found = {name: [one.operator.family, one.fault.hook, one.fault.breaks] for name, one in derived().items()}
print(json.dumps(found))
"""


def _run(warm: Warm, script: str, *arguments: str) -> dict[str, list[str]]:
    command = [*warm.python, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def model(warm: Warm) -> dict[str, list[str]]:
    """Family, hook and broken sentence of every derived fault, by name."""
    return _run(warm, _LIST)


def test_every_hook_has_faults_of_several_families(model: dict[str, list[str]]) -> None:
    assert len(model) > 1000
    for hook in HOOKS.keys() - _WRITTEN:
        families = {family for family, named, _ in model.values() if named == hook}
        assert len(families) >= 4, (hook, families)


def test_every_fault_says_what_it_breaks(model: dict[str, list[str]]) -> None:
    assert not [name for name, (_, _, breaks) in model.items() if len(breaks) < 10]


@pytest.mark.parametrize("count", [3, pytest.param(None, marks=pytest.mark.thorough)])
def test_a_sample_of_the_faults_is_caught_by_a_sentence(
    model: dict[str, list[str]], count: int | None, warm: Warm
) -> None:
    """One of each of ``count`` families, or of each family; `make kill-matrix` judges all."""
    print(f"FAULT_MODEL_SEED={_SEED}")
    source = random.Random(_SEED)
    families = sorted({family for family, _, _ in model.values()})
    chosen = [
        source.choice([name for name, (own, hook, _) in model.items() if own == family and hook])
        for family in source.sample(families, count or len(families))
    ]
    found = _run(warm, _SCRIPT, *chosen)
    assert not {name: one for name, one in found.items() if one[0] != "fail" or len(one[2]) < 10}


def test_whatever_a_fault_leaves_behind_is_gone_afterwards(
    model: dict[str, list[str]], warm: Warm, tmp_path: Path
) -> None:
    """Also of processes that are ended in the middle of their work."""
    names = [name for name in model if name.endswith("writes_a_temporary_file")]
    once = [name for name in names if "first" in name]
    elsewhere = f"import tempfile\ntempfile.tempdir = {str(tmp_path)!r}\n{_SCRIPT}"
    found = _run(warm, elsewhere, *once[:1], *[name for name in names if "backend" in name])
    assert len(found) == 3
    assert not [*tmp_path.iterdir()]


# Kinds of faults that the suite once let pass, each of which has a property that finds it.
_KINDS = (
    "neighbours_are_confused",
    "a_form_is_refused_or_lost",
    "an_error_is_followed_wrongly",
    "a_peak_is_lost",
    "a_limit_is_taken_lightly",
    "the_small_and_the_many",
    "a_capture_is_not_whole",
    "a_graphs_pool_is_ignored_or_kept",
    "a_capture_confuses_others",
    "a_wait_counts_once_or_at_home",
    "streams_are_told_apart_badly",
    "a_replay_is_not_waited_for",
    "a_method_fails_one_kind",
    "a_method_fails_with_one_kind",
    "one_kind_of_stream_is_not_used",
    "the_parents_numbers_are_told",
    "a_process_goes_by_anothers_number",
    "asking_for_nothing_initialises",
)


@pytest.mark.parametrize("count", [3, pytest.param(None, marks=pytest.mark.thorough)])
def test_faults_at_edges_and_around_captures_are_caught(
    model: dict[str, list[str]], count: int | None, warm: Warm
) -> None:
    """One of each of ``count`` kinds, or all of every kind."""
    print(f"FAULT_MODEL_SEED={_SEED}")
    source = random.Random(_SEED)
    by_kind = {kind: [name for name in model if name.startswith(f"{kind}__")] for kind in _KINDS}
    assert all(by_kind.values())
    if count is None:
        chosen = [name for names in by_kind.values() for name in names]
    else:
        chosen = [source.choice(by_kind[kind]) for kind in source.sample(_KINDS, count)]
    found = _run(warm, _SCRIPT, *chosen)
    assert not {name: one for name, one in found.items() if one[0] != "fail" or len(one[2]) < 10}


# What a run over half of the model let pass, most of it for a situation in which no hook was called yet.
_LET_PASS = (
    "an_exception_silences_it__process_memory",
    "cannot_be_called_from_a_finalizer__import_ipc",
    "a_capability_is_denied__backend__tunable_allocator",
    "each_third_call_leaks__classify_error__device_memory",
    "forked_children_are_refused__import_ipc",
    "handles_change_the_process__create_event__synchronize_patches_tensors",
    "handles_change_the_process__default_stream__synchronize_starts_a_process",
    "index_is_right_in_the_first_thread_only__telemetry",
    "the_first_call_does_nothing__current_index",
    "the_work_of_another_silences_it__supported_dtypes__query",
)


@pytest.mark.parametrize("count", [2, pytest.param(None, marks=pytest.mark.thorough)])
def test_what_a_run_let_pass_is_caught(warm: Warm, count: int | None) -> None:
    print(f"FAULT_MODEL_SEED={_SEED}")
    chosen = random.Random(_SEED).sample(_LET_PASS, count or len(_LET_PASS))
    found = _run(warm, _SCRIPT, *chosen)
    assert not {name: one for name, one in found.items() if one[0] != "fail" or len(one[2]) < 10}
