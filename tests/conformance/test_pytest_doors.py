"""The two pytest front doors: ``--pyargs`` and a vendor's own class. A whole run of it: `test_report`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from devicekit.conformance import BackendConformance
from tests.conformance.conftest import ONLY_OURS, SUITE

Command = Callable[..., "subprocess.CompletedProcess[str]"]
RunPytest = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def run_pytest(command: Command) -> Callable[..., tuple[int, str]]:
    """Runs pytest; returns its exit code and what it printed."""

    def run(*arguments: str, folder: Path, as_a_user: bool = False) -> tuple[int, str]:
        whole = ("-q", *ONLY_OURS, *arguments)
        done = command(*whole, folder=folder, module="pytest", as_a_user=as_a_user)
        return done.returncode, done.stdout + done.stderr

    return run


def test_a_failed_requirement_is_a_failed_test_without_a_traceback(
    run_pytest: RunPytest, tmp_path: Path, backend: Callable[[str], str]
) -> None:
    arguments = ("--backend", backend("swapped"), "--profile", "memory")
    code, said = run_pytest(*SUITE, *arguments, "-k", "DRIVER-001", folder=tmp_path)
    assert code == 1
    assert "DK-DRIVER-001 fail: free is" in said
    assert "memory_info() MUST give free and total" in said
    assert "Traceback" not in said


def test_deselecting_a_requirement_makes_the_run_incomplete(run_pytest: RunPytest, tmp_path: Path) -> None:
    code, said = run_pytest(*SUITE, "--backend", "cpu", "--profile", "host", "-k", "CAP-010", folder=tmp_path)
    assert code == 6, said
    assert "INCOMPLETE" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Say which backend to judge"),
        (("--backend", "acme"), "No backend 'acme' is installed"),
        (("--backend", "cpu", "--profile", "speed"), "no profile speed"),
        (("--backend", "cpu", "-n", "2"), "without -n"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_4(
    run_pytest: RunPytest, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    code, output = run_pytest(*SUITE, *arguments, folder=tmp_path)
    assert code == 4
    assert said in output
    assert "Traceback" not in output


def test_a_vendors_own_backend_option_and_ini_file_are_left_alone(
    run_pytest: RunPytest, tmp_path: Path
) -> None:
    (tmp_path / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--backend', default='theirs')\n"
    )
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\npython_files = check_*.py\naddopts = --strict-markers\nfilterwarnings = error\n"
    )
    (tmp_path / "check_theirs.py").write_text(
        "def test_theirs(request):\n    assert request.config.getoption('--backend') == 'theirs'\n"
    )
    assert run_pytest(folder=tmp_path, as_a_user=True)[0] == 0
    chosen = ("--devicekit-backend=cpu", "--devicekit-profile=streams", "-k", "LOAD-001")
    code, said = run_pytest(*SUITE, *chosen, folder=tmp_path, as_a_user=True)
    assert code == 6, said  # judged, and not all of it
    assert "1 passed" in said


def test_a_vendors_class_has_a_test_for_each_requirement(
    run_pytest: RunPytest, tmp_path: Path, backend: Callable[[str], str]
) -> None:
    address = backend("sound")
    (tmp_path / "test_mine.py").write_text(
        "from devicekit.conformance import BackendConformance\n\n\n"
        f"class TestMine(BackendConformance):\n    backend = {address!r}\n"
    )
    code, said = run_pytest("test_mine.py", "-p", "no:cacheprovider", "-k", "rng", "-vv", folder=tmp_path)
    assert "test_dk_rng_001_a_seed_fixes_the_numbers" in said
    assert code == 6  # most requirements were deselected, and that shows
    assert "INCOMPLETE" in said


def test_a_vendors_class_keeps_to_the_chosen_profiles(run_pytest: RunPytest, tmp_path: Path) -> None:
    (tmp_path / "test_cpu.py").write_text(
        "from devicekit.conformance import BackendConformance\n\n\n"
        'class TestCpu(BackendConformance):\n    backend = "cpu"\n'
    )
    arguments = ("test_cpu.py", "-p", "no:cacheprovider", "-rs", "--devicekit-profile", "host")
    code, said = run_pytest(
        *arguments, "-k", "cap_010 or dk_driver or dk_engine or dk_hardware", folder=tmp_path
    )
    assert code == 6, said  # judged, and not all of it
    for other in ("memory", "engine", "hardware"):
        assert f"the profile {other} was not chosen" in said


def test_overriding_a_requirement_is_an_error() -> None:
    with pytest.raises(TypeError, match="overrides test_dk_cache_002_live_data_survives"):

        class Hiding(BackendConformance):
            backend = "cpu"

            def test_dk_cache_002_live_data_survives(self) -> None:
                """Nothing to see here."""


def test_a_class_that_workers_cannot_find_is_refused(run_pytest: RunPytest, tmp_path: Path) -> None:
    (tmp_path / "test_local.py").write_text(
        "from devicekit.conformance import BackendConformance\n\n\n"
        "class TestLocal(BackendConformance):\n    backend = object()\n"
    )
    code, said = run_pytest("test_local.py", "-p", "no:cacheprovider", folder=tmp_path)
    assert code != 0
    assert "workers make their own instances" in said
