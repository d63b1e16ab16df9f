"""The doctor finds what is wrong with real installations, and survives what it finds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib import metadata
from pathlib import Path

import pytest

from devicekit.cli import main
from devicekit.commands.doctor_text import as_text
from devicekit.contract.errors import ConfigurationError
from devicekit.devtools.doctor import Diagnosis, diagnose
from devicekit.devtools.doctor.children import examine
from devicekit.devtools.doctor.facts import wrong_setting
from tools.warm import Warm

Install = Callable[[str, str, str], None]

BACKEND = """
from devicekit.contract import hookimpl

class Backend:
    @hookimpl
    def is_available(self):
        {available}

    @hookimpl
    def device_count(self):
        return 0

    @hookimpl
    def synchronize(self, index):
        pass
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution ``name`` with one entry point and one module of that name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, entry_points: str, code: str) -> None:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").write_text(code)

    return install


MANIFEST = (
    '[backend]\nname = "{name}"\ndevice_type = "{name}"\ncontract = ">=1.0,<2"\nhardware = ["{sign}"]\n'
)
REPORT = {
    "backend": {"name": "cpu"},
    "tier": "verified",
    "verdict": "conformant",
    "suite": {"version": "0.1"},
    "finished": "2026-01-01",
}


def install_backend(install: Install, folder: Path, name: str, available: str, sign: str) -> None:
    module = f"devicekit_{name}"
    install(
        module,
        f"[devicekit.backends]\n{name} = {module}:Backend\n",
        BACKEND.format(available=available),
    )
    (folder / module / "backend.toml").write_text(MANIFEST.format(name=name, sign=sign))


def test_everything_that_is_broken_is_named_and_the_rest_examined_all_the_same(
    install: Install, tmp_path: Path, warm: Warm, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"  # where torch loads no extensions, it may be there already
    swift = f'[ "$TORCH_DEVICE_BACKEND_AUTOLOAD" = 0 ] && exec {warm.interpreter} "$@"'
    python.write_text(f'#!/bin/sh\n{swift}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    install(
        "torch_acme",
        "[torch.backends]\nacme = torch_acme:autoload\n",
        "raise OSError('libacme.so.2 is missing')",
    )
    install_backend(install, tmp_path, "acme", "raise RuntimeError('driver too old')", "/dev/null")
    install_backend(install, tmp_path, "beta", "import os; os._exit(9)", "/nowhere/*")
    install_backend(install, tmp_path, "gone", "return False", "/nowhere/*")
    install("devicekit_bad", "[devicekit.backends]\nbad = devicekit_bad:Backend\n", "")  # without a manifest
    report = tmp_path / "report.json"
    report.write_text(json.dumps(REPORT | {"backend": {"name": "npu"}, "verdict": "non-conformant"}))

    diagnosis = diagnose(conformance=report)

    problems = {problem.what: problem for problem in diagnosis.problems}
    told = "\n".join(problems)
    assert "`import torch` fails" in told
    assert "extension acme of torch_acme fails: OSError: libacme.so.2 is missing" in told
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in diagnosis.problems[0].remedy
    serious = {what.split()[1]: one.serious for what, one in problems.items() if what.startswith("Backend")}
    assert {"acme": True, "beta": False, "bad": True, "npu": True}.items() <= serious.items()
    assert "driver too old" in told
    assert "the process ended with status 9" in told
    backends = {one["name"]: one["ok"] for one in diagnosis.backends}
    assert {
        "cpu": True,
        "acme": False,
        "beta": False,
        "gone": False,
        "bad": False,
    }.items() <= backends.items()
    assert diagnosis.exit_status == 1


@pytest.fixture
def swift(warm: Warm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examinations need not import torch each: for where neither that it loads nor what it then does matters."""
    monkeypatch.setattr(sys, "executable", warm.interpreter)


@pytest.mark.usefixtures("swift")
def test_a_sound_installation_has_no_problems(
    install: Install,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install("torch_fine", "[torch.backends]\nfine = torch_fine:autoload\n", "def autoload():\n    pass\n")
    report = tmp_path / "report.json"
    report.write_text(json.dumps(REPORT))
    monkeypatch.setenv("HOME", sys.prefix)
    assert main(["doctor", "--json", "--redact", "--conformance", str(report)]) == 0
    out = capsys.readouterr().out
    assert sys.prefix not in out
    document = json.loads(out)
    # A plugin for hardware that is not here lacks its vendor's package, which is nothing serious.
    assert [one for one in document["problems"] if one["serious"]] == []
    assert (document["exit_status"], document["choice"]["backend"]) == (0, "cpu")
    assert [(one["name"], one["ok"]) for one in document["autoload"]] == [("fine", True)]
    assert document["conformance"]["tier"] == "verified"
    assert document["packages"]["torch"] == metadata.version("torch")
    sections = {field.name: document[field.name] for field in fields(Diagnosis)} | {"problems": []}
    text = as_text(Diagnosis(**sections))
    for line in ("tier      verified", "cpu (devicekit-cpu", "extension fine of torch_fine: works", "  none"):
        assert line in text


@pytest.mark.usefixtures("swift")
@pytest.mark.parametrize("asked", [None, "fresh"])
def test_a_backend_that_is_used_only_when_asked_for_is_no_fault(
    asked: str | None, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_backend(install, tmp_path, "fresh", "return True", "/dev/null")
    package = tmp_path / "devicekit_fresh"
    (package / "__init__.py").write_text(
        BACKEND.format(available="return True").replace("return 0", "return 1")
    )
    manifest = MANIFEST.format(name="fresh", sign="/dev/null") + "automatic = false\n"
    (package / "backend.toml").write_text(manifest.replace('device_type = "fresh"', 'device_type = "cpu"'))
    monkeypatch.setenv("DEVICEKIT_ALLOWED_DISTRIBUTIONS", "devicekit_fresh")  # as if it were installed alone
    if asked is not None:
        monkeypatch.setenv("DEVICEKIT_BACKEND", asked)

    diagnosis = diagnose()

    told = [one.what for one in diagnosis.problems if "fresh" in one.what]
    assert diagnosis.exit_status == 0, diagnosis.problems
    assert [what for what in told if "only when asked for by name: fresh" in what] == told
    assert bool(told) == (asked is None)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "the process ended with signal 11"),
        ("print('{', end='')\nraise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_an_examination_survives_what_it_examines(install: Install, code: str, said: str) -> None:
    install("torch_acme", "[torch.backends]\nacme = torch_acme:autoload\n", code)
    found = examine("autoload", "acme", autoload=False)
    assert (found["ok"], found["error"]) == (False, said)


def test_an_examination_that_hangs_is_ended() -> None:
    found = examine("torch", timeout=0.01)
    assert (found["ok"], found["error"]) == (False, "did not finish within 0.01 s")


def test_a_misspelt_setting_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wrong_setting() is None
    monkeypatch.setenv("DEVICEKIT_BACKENDS", "cpu")
    assert "Did you mean DEVICEKIT_BACKEND" in str(wrong_setting())


@pytest.mark.usefixtures("swift")
def test_a_wrong_setting_is_told_once_and_not_of_every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICEKIT_BACKEND", "npu:one")
    told = [problem.what for problem in diagnose().problems if "npu:one" in problem.what]
    assert len(told) == 1
    assert told[0].startswith("DEVICEKIT_BACKEND: A device is written")


@pytest.mark.usefixtures("swift")
def test_a_release_setting_that_an_engine_would_refuse_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICEKIT_RELEASE_FLUSH", "maybe")
    found = diagnose()
    told = [problem for problem in found.problems if "'maybe' is no release policy" in problem.what]
    assert [problem.serious for problem in told] == [True]
    assert found.choice["ok"] is True


def test_the_doctor_itself_imports_neither_torch_nor_a_plugin() -> None:
    code = (
        "import sys; import devicekit.commands.doctor, devicekit.devtools.doctor; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'devicekit_cpu')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_another_file_is_no_conformance_report(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("{}")
    with pytest.raises(ConfigurationError, match=r"report\.json is no conformance report"):
        diagnose(conformance=report)
