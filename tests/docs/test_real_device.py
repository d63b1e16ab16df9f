"""The worked example over a real device: every command of its page, and the verdicts that it tells.

Last run by hand on 2026-11-30: torch 2.13.0, torchvulkan 0.2.1, Mesa 22.3.6.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from tests.docs.blocks import CHECKOUT, blocks_of
from tests.docs.environment import Environment

PAGE = CHECKOUT / "docs" / "tutorials" / "real-device.md"
SECONDS = 3600.0  # for one command; twelve minutes on a busy machine of two cores


@pytest.mark.thorough
@pytest.mark.timeout(3 * SECONDS)
@pytest.mark.skipif(importlib.util.find_spec("torchvulkan") is None, reason="torchvulkan is not installed")
@pytest.mark.skipif(os.name != "posix", reason="the lines are a shell's")
def test_a_real_device_comes_to_the_verdict_that_the_page_tells(tmp_path: Path) -> None:
    environment = Environment(tmp_path, SECONDS)
    blocks = blocks_of(PAGE)
    install, start, first, claim, last = (block for block in blocks if block.language == "bash")
    [backend] = (block for block in blocks if block.language == "python")

    environment.succeed(install.text.splitlines()[1])  # Debian's packages are not for a test to install
    for line in start.text.splitlines():
        said = environment.succeed(line)
    assert "vulkan:0  llvmpipe" in said

    done = environment.run(first.text)
    assert done.returncode == 1, done.stdout
    assert "1 fail" in done.stdout
    assert "could be allocated, and free was" in done.stdout

    source = environment.scratch / "devicekit-vulkan" / "devicekit_vulkan" / "backend.py"
    source.write_text(source.read_text().partition("class Backend")[0] + backend.text)
    environment.succeed(claim.text)
    verdict = environment.succeed(last.text)
    assert "vulkan: CONFORMANT, tier verified" in verdict, verdict
