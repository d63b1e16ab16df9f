"""The host as a backend: container limits, real allocation failures, and life after a fork."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from devicekit.contract import HOOKS, ErrorKind, Manifest
from devicekit.registry import Candidate
from devicekit.registry.validation import check_hooks, implemented_hooks
from devicekit_cpu import Backend, host_memory

GIB = 1024**3
MANIFEST = Path(str(sys.modules["devicekit_cpu"].__file__)).parent / "backend.toml"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 GiB, 40 of them available, with an empty tree of control groups."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(
        f"MemTotal: {64 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {40 * GIB // 1024} kB\n"
    )
    monkeypatch.setattr(host_memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(host_memory, "_OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(host_memory, "_CGROUP_ROOT", tmp_path / "cgroup")
    return tmp_path


def _group(machine: Path, path: str, **files: str) -> None:
    folder = machine / "cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def _free_and_total(backend: Backend) -> tuple[float | None, float | None]:
    info = backend.memory_info(0)
    return tuple(None if value is None else value / GIB for value in (info.free, info.total))  # type: ignore[return-value]


def test_without_control_groups_the_machine_is_the_limit(machine: Path) -> None:
    assert _free_and_total(Backend()) == (40, 64)
    assert Backend().memory_info(0).source == "os"


def test_a_containers_own_limit_counts_less_its_reclaimable_page_cache(machine: Path) -> None:
    (machine / "own").write_text("0::/\n")
    _group(
        machine,
        ".",
        memory__max=str(8 * GIB),
        memory__current=str(5 * GIB),
        memory__stat=f"anon 1\ninactive_file {2 * GIB}",
    )
    assert _free_and_total(Backend()) == (5, 8)
    assert Backend().device_properties(0).total_memory == 8 * GIB


def test_the_tightest_group_above_the_process_decides(machine: Path) -> None:
    (machine / "own").write_text("0::/pod/container\n")
    _group(machine, "pod/container", memory__max="max", memory__current="0")
    _group(machine, "pod", memory__max=str(16 * GIB), memory__current=str(15 * GIB))
    assert _free_and_total(Backend()) == (1, 16)


def test_a_limit_beyond_the_machine_is_no_limit(machine: Path) -> None:
    (machine / "own").write_text("0::/pod\n")
    _group(machine, "pod", memory__max=str(640 * GIB), memory__current=str(GIB))
    assert _free_and_total(Backend()) == (40, 64)


def test_a_group_used_beyond_its_limit_has_nothing_free(machine: Path) -> None:
    (machine / "own").write_text("0::/pod\n")
    _group(machine, "pod", memory__max=str(4 * GIB), memory__current=str(5 * GIB))
    assert _free_and_total(Backend()) == (0, 4)


def test_version_1_groups_count_their_children(machine: Path) -> None:
    (machine / "own").write_text("12:cpu,cpuacct:/elsewhere\n5:memory:/docker/abc\n")
    _group(
        machine,
        "memory/docker/abc",
        memory__limit_in_bytes=str(8 * GIB),
        memory__usage_in_bytes=str(6 * GIB),
        memory__stat=f"inactive_file 0\ntotal_inactive_file {GIB}",
    )
    assert _free_and_total(Backend()) == (3, 8)


def test_a_version_1_container_that_sees_only_its_own_group_is_limited_by_it(machine: Path) -> None:
    (machine / "own").write_text("5:memory:/docker/not-mounted-here\n")
    _group(machine, "memory", memory__limit_in_bytes=str(2 * GIB), memory__usage_in_bytes=str(GIB))
    assert _free_and_total(Backend()) == (1, 2)


def test_no_limit_in_version_1_is_unknown_and_not_a_huge_number(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "meminfo").unlink()
    monkeypatch.setattr(host_memory, "_sysconf_total", lambda: None)
    (machine / "own").write_text("5:memory:/\n")
    _group(machine, "memory", memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes=str(GIB))
    assert _free_and_total(Backend()) == (None, None)


def test_a_real_allocation_failure_is_out_of_memory_also_when_wrapped() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert not isinstance(caught.value, torch.OutOfMemoryError)
    assert Backend().classify_error(caught.value) is ErrorKind.OUT_OF_MEMORY
    wrapper = ValueError("the layer failed")
    wrapper.__cause__ = caught.value
    assert Backend().classify_error(wrapper) is ErrorKind.OUT_OF_MEMORY
    with pytest.raises(RuntimeError) as other:
        torch.empty(-1)
    assert Backend().classify_error(other.value) is None


def test_the_manifest_stands_the_registrys_check() -> None:
    check_hooks(Backend(), Candidate("cpu", "test", "1", "test:Backend", Manifest.read(MANIFEST)))


def test_what_the_host_does_not_have_is_absent() -> None:
    absent = set(HOOKS) - implemented_hooks(Backend())
    inert = {"current_stream", "create_stream", "use_stream", "create_event", "create_graph"}
    uncounted = {"memory_stats", "reset_peak_memory_stats", "memory_snapshot", "host_memory_stats"}
    assert absent >= {
        *inert,
        *uncounted,
        "pin_memory",
        "memory_pool",
        "set_memory_fraction",
        "empty_host_cache",
    }


def test_seeding_leaves_other_devices_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("reseeded"))
    backend = Backend()
    before = backend.get_rng_state(0)
    try:
        backend.manual_seed(0, 7)
        state = backend.get_rng_state(0)
        first = torch.rand(3)
        backend.set_rng_state(0, state)
        assert torch.equal(torch.rand(3), first)
        for rows in (torch.stack([before, state]), torch.stack([before, state], dim=1).T):
            backend.set_rng_state(0, rows[1])
            assert torch.equal(torch.rand(3), first)
    finally:
        backend.set_rng_state(0, before)


def test_the_answers_are_the_hosts() -> None:
    backend = Backend()
    assert (backend.is_available(), backend.device_count(), backend.current_index()) == (True, 1, 0)
    backend.set_index(0)
    backend.synchronize(0)
    backend.empty_cache()
    found = backend.device_properties(0)
    assert found.unified_memory is True
    assert found.compute_units == host_memory.usable_cores()
    assert (found.total_memory or 0) > 0
    assert (backend.is_capturing(0), backend.copies_overlap(0), backend.is_bad_fork()) == (
        False,
        False,
        False,
    )
    assert (backend.collective_backend(), backend.visible_devices_variable()) == ("gloo", None)
    assert backend.profiler_activity() is torch.profiler.ProfilerActivity.CPU


_FORKING = """
import os, torch
from devicekit_cpu import Backend
backend = Backend()
torch.ones(300, 300) @ torch.ones(300, 300)
before = backend.memory_info(0)
child = os.fork()
if child == 0:
    inside = backend.memory_info(0)
    backend.empty_cache()
    backend.manual_seed(0, 1)
    good = inside.total == before.total and inside.free > 0 and not backend.is_bad_fork()
    os._exit(0 if good and backend.is_available() else 1)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_uses_the_host_as_before() -> None:
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", _FORKING], env=environment, timeout=60, check=False)
    assert ran.returncode == 0
