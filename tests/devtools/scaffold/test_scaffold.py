"""A new backend's package is accepted by the registry and works, before anything in it is changed."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

import devicekit
from devicekit.cli import main
from devicekit.contract import HOOKS, Manifest
from devicekit.contract.errors import ConfigurationError
from devicekit.devtools.scaffold import new_backend
from devicekit.testing import MIB, simulation

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh package `acme`, installed the way pip does it in place: on the path, with its entry points."""
    folder = tmp_path / "devicekit-acme"
    new_backend("acme", folder)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"devicekit_acme-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
            for group, entries in project["entry-points"].items()
        )
    )
    monkeypatch.syspath_prepend(str(folder))
    with simulation():
        yield folder
    for name in [name for name in sys.modules if name.startswith("devicekit_acme")]:
        del sys.modules[name]


def test_the_registry_accepts_it_and_its_devices_work(acme: Path) -> None:
    device = devicekit.get_device("acme:1")
    assert metadata.version("devicekit-acme") == device.backend.candidate.version
    assert device.backend.candidate.distribution == "devicekit-acme"
    held = torch.ones(MIB, dtype=torch.uint8, device=device.torch_device)
    device.synchronize()
    assert device.memory_stats().allocated == held.nbytes
    del held
    assert device.empty_cache().released


def test_it_is_not_chosen_unless_asked_for(acme: Path) -> None:
    verdicts = {one.name: one for one in devicekit.select().candidates}
    assert verdicts["acme"].reason == "it is used only when asked for by name"


def test_every_hook_is_there_with_the_types_and_words_of_the_contract(acme: Path) -> None:
    backend = devicekit.get_device("acme").backend
    assert backend.implemented == frozenset(HOOKS)
    for name, spec in HOOKS.items():
        method = getattr(backend.plugin, name)
        signature = inspect.signature(method)
        typed = ", ".join(str(one) for one in signature.parameters.values())
        assert f"{name}({typed}) -> {signature.return_annotation}".replace("'", "") == spec.declaration
        assert inspect.getdoc(method) == spec.doc


def test_its_manifest_claims_what_the_simulated_machine_can(acme: Path) -> None:
    manifest = Manifest.read(acme / "devicekit_acme" / "backend.toml")
    assert (manifest.name, manifest.device_type, manifest.automatic) == ("acme", "sim", False)
    assert {"streams", "caching_allocator", "graphs"} <= manifest.capabilities


def test_everything_a_vendor_needs_is_there_and_nothing_is_left_to_fill_in(acme: Path) -> None:
    names = {path.relative_to(acme).as_posix() for path in acme.rglob("*") if path.is_file()}
    assert {
        "README.md",
        "pyproject.toml",
        "conformance-waivers.toml",
        ".github/workflows/conformance.yml",
        "tests/test_conformance.py",
        "devicekit_acme/backend.py",
        "devicekit_acme/backend.toml",
        "devicekit_acme/conformance.toml",
        "devicekit_acme/py.typed",
    } <= names
    for name in names:
        text = (acme / name).read_text()
        assert "$name" not in text
        assert "$title" not in text
    compile((acme / "tests/test_conformance.py").read_text(), "test_conformance.py", "exec")
    assert tomllib.loads((acme / "conformance-waivers.toml").read_text()) == {}


@pytest.mark.parametrize("name", ["Acme", "two words", "9lives", "", "a-b"])
def test_a_name_must_be_an_identifier(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="identifier"):
        new_backend(name, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not an empty folder"):
        new_backend("acme", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    assert main(["new-backend", "zeta", "-o", str(folder)]) == 0
    assert f"pip install -e {folder}[test] && devicekit info --device zeta" in capsys.readouterr().out
    assert (folder / "devicekit_zeta" / "backend.py").exists()
