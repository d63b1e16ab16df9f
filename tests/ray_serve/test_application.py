"""Replicas on Ray Serve: one outcome for a verb, and one version of the weights, also after one is killed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
RAY = importlib.util.find_spec("ray") is not None

needs_ray = pytest.mark.skipif(not RAY, reason="ray is not installed: pip install 'devicekit[ray]'")


@needs_ray
@pytest.mark.thorough
@pytest.mark.timeout(1500)
def test_two_replicas_are_steered_as_one() -> None:
    command = [sys.executable, "-m", "examples.fleet_ray"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=1400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "All replicas have said the same after each step." in done.stdout


@needs_ray
def test_what_is_no_argument_is_refused() -> None:
    from pydantic import ValidationError

    from devicekit.ray_serve import Arguments

    with pytest.raises(ValidationError, match="replica"):
        Arguments.model_validate({"model": "/m", "replica": 3})


@needs_ray
def test_control_goes_to_the_fleet_and_everything_else_to_the_engine() -> None:
    from devicekit.ray_serve.front import _STEERING

    assert {"/update_weights_from_disk", "/pause_generation", "/claim_for_fleet", "/join_fleet"} <= _STEERING
    assert not {"/generate", "/v1/chat/completions", "/health", "/server_info", "/tokenize"} & _STEERING
