"""A device that is too small to be judged is said to be, before anything is judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from devicekit_conformance.device_check import SMALLEST, check_device
from devicekit_conformance.judge import Nursery
from devicekit_conformance.target import Target, UsageError
from tests.conformance.conftest import Command

_BACKEND = """
from devicekit.testing import SimConfig, enable, sim_backend

enable(SimConfig(capacity={capacity}))


class Mine(sim_backend.SimBackend):
    manifest = sim_backend.manifest()
"""


def _backend(folder: Path, capacity: int) -> str:
    (folder / "mine.py").write_text(_BACKEND.format(capacity=capacity), encoding="utf-8")
    return f"{folder / 'mine.py'}:Mine"


def test_one_that_is_just_large_enough_is_judged(nursery: Nursery, tmp_path: Path) -> None:
    check_device(nursery, Target(_backend(tmp_path, SMALLEST)))


def test_a_smaller_one_is_none_to_judge(nursery: Nursery, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"needs 256 MiB of memory on each device.* has 67108864 bytes"):
        check_device(nursery, Target(_backend(tmp_path, 64 << 20)))


def test_both_front_doors_say_so_and_judge_nothing(command: Command, tmp_path: Path) -> None:
    address = _backend(tmp_path, 96 << 20)
    done = command("conformance", "run", "--backend", address, folder=tmp_path)
    assert done.returncode == 4
    assert "The suite needs 256 MiB of memory" in done.stderr
    tested = command(
        "--pyargs", "devicekit_conformance", "--backend", address, folder=tmp_path, module="pytest"
    )
    assert tested.returncode == 4
    assert "The suite needs 256 MiB of memory" in tested.stdout + tested.stderr
