"""The README's examples run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from devicekit.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def example(name: str) -> str:
    found = re.search(rf"<!-- tested: {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found is not None, f"the README has no example {name}"
    return found[1]


def test_the_engine_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = example("engine")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    monkeypatch.chdir(tmp_path)
    assert main(["example-model", "models"]) == 0
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "\nTrue None\n" in printed  # nobody counts what the host's allocator holds
    assert "\nCache flushed.\n" in printed
    assert "VersionSpan(version='v2'" in printed


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    """The README's backend, laid out as pip would install it."""
    package = tmp_path / "acme_backend"
    package.mkdir()
    (package / "__init__.py").write_text(example("plugin"))
    (package / "backend.toml").write_text(example("manifest"))
    info = tmp_path / "acme_backend-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-backend\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[devicekit.backends]\nacme = acme_backend:Backend\n")
    return tmp_path


def run_python(code: str, path: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_plugin_example_is_a_whole_backend(acme: Path) -> None:
    printed = run_python(
        """
        import torch, devicekit

        device = devicekit.get_device("acme")
        print(device.memory_info().free, torch.ones(2, device=device.torch_device).sum().item())
        print(device.synchronize(), device.memory_stats().allocated, bool(device.empty_cache()))
        try:
            device.create_stream()
        except devicekit.DeviceKitError as error:
            print(type(error).__name__, "acme-backend 1.2" in str(error))
        """,
        acme,
    )
    assert printed.splitlines() == [f"{6 * 2**30} 2.0", "None None False", "UnsupportedHook True"]


def test_the_plugin_example_is_listed_without_being_imported(acme: Path) -> None:
    (acme / "acme_backend" / "__init__.py").write_text("raise RuntimeError('imported')")
    printed = run_python("from devicekit.cli import main; main(['list'])", acme)
    assert re.search(r"^acme +acme-backend +1\.2 +cpu", printed, re.MULTILINE)


def test_the_plugin_example_is_conformant_on_the_core_profile(acme: Path) -> None:
    """By the command that stands under it, from the folder that holds the package."""
    command = "conformance run --backend acme_backend:Backend --profile core"
    assert f"devicekit {command}" in README
    done = subprocess.run(
        [sys.executable, "-m", "devicekit", *command.split()],
        cwd=acme,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout
    assert "acme_backend:Backend: CONFORMANT" in done.stdout


def test_the_page_fits_two_screens() -> None:
    assert len(README.splitlines()) <= 155
