"""A new backend's package is accepted by the registry and works, before anything in it is changed."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import devicekit
from devicekit.cli import main
from devicekit.contract import HOOKS, Manifest
from devicekit.contract.errors import ConfigurationError
from devicekit.devtools.scaffold import Start, new_backend
from devicekit.devtools.scaffold.hooks_source import NOT_SIMULATED
from devicekit.registry import Candidate
from devicekit.registry.validation import check_hooks, implemented_hooks
from devicekit.testing import MIB, sim_backend, simulation

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
    assert backend.implemented == frozenset(HOOKS) - NOT_SIMULATED
    for name, spec in HOOKS.items():
        if name in NOT_SIMULATED:
            continue
        method = getattr(backend.plugin, name)
        signature = inspect.signature(method)
        typed = ", ".join(str(one) for one in signature.parameters.values())
        assert f"{name}({typed}) -> {signature.return_annotation}".replace("'", "") == spec.declaration
        assert inspect.getdoc(method) == spec.doc


def test_its_manifest_claims_what_the_simulated_machine_can(acme: Path) -> None:
    manifest = Manifest.read(acme / "devicekit_acme" / "backend.toml")
    assert (manifest.name, manifest.device_type, manifest.automatic) == ("acme", "sim", False)
    simulated = sim_backend.manifest()
    assert (manifest.capabilities, manifest.noop) == (simulated.capabilities, simulated.noop)
    assert frozenset(HOOKS) - implemented_hooks(sim_backend.SimBackend()) == NOT_SIMULATED


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


_NO_NAMES = (
    "Acme",
    "two words",
    "9lives",
    "",
    "a-b",
    "_acme",
    "acme_",
    "a__b",
    "__init__",
    "x" * 101,
    "acmé",
    "a\n",
)


@pytest.mark.parametrize("name", _NO_NAMES, ids=lambda one: ascii(one[:10]))
def test_a_name_must_be_an_identifier(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="identifier"):
        new_backend(name, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cpu", "cuda", "musa", "npu", "rocm", "xpu", "conformance"])
def test_no_package_takes_the_place_of_one_of_devicekits_own(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"devicekit-{name} is a distribution of devicekit's own"):
        new_backend(name, tmp_path / "new", start=Start.PLAIN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "acme_two", "a1_b2", "class", "x" * 100])
def test_a_name_that_is_taken_is_one_that_an_index_and_a_manifest_take(name: str, tmp_path: Path) -> None:
    new_backend(name, tmp_path / "new", start=Start.PLAIN)
    project = tomllib.loads((tmp_path / "new" / "pyproject.toml").read_text())["project"]
    assert Requirement(project["name"]).name == project["name"] == f"devicekit-{name}"
    assert Manifest.read(tmp_path / "new" / f"devicekit_{name}" / "backend.toml").name == name


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not an empty folder"):
        new_backend("acme", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    assert main(["new-backend", "zeta", "-o", str(folder)]) == 0
    assert f"pip install -e '{folder}[test]' && devicekit info --device zeta" in capsys.readouterr().out
    assert (folder / "devicekit_zeta" / "backend.py").exists()


TAKEN = """
import builtins, sys
real = builtins.__import__
def refuse(name, *rest):
    if name.partition(".")[0] == "torch":
        raise RuntimeError("the vendor's extension broke torch")
    return real(name, *rest)
builtins.__import__ = refuse
from devicekit.cli import main
for number, words in enumerate([[], ["--plain"], ["--over", "torch.cpu"], ["--simulated"]]):
    assert main(["new-backend", "acme", "-o", f"out{number}", *words]) == 0
print(sorted(name for name in sys.modules if name.startswith(("torch", "devicekit.testing"))))
"""


def test_writing_files_needs_neither_torch_nor_the_simulated_accelerator(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TAKEN], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("start", "over"), [(Start.PLAIN, None), (Start.SIMULATED, "torch.cpu")])
def test_the_other_starts_are_accepted_too(tmp_path: Path, start: Start, over: str | None) -> None:
    new_backend("acme", tmp_path / "new", start=start, over=over)
    package = tmp_path / "new" / "devicekit_acme"
    manifest = Manifest.read(package / "backend.toml")
    space: dict[str, object] = {}
    exec(compile((package / "backend.py").read_text(), "backend.py", "exec"), space)
    plugin = space["Backend"]()  # type: ignore[operator]
    check_hooks(plugin, Candidate("acme", "devicekit-acme", "1", "acme:Backend", manifest))
    assert {"is_available", "device_count", "synchronize"} <= implemented_hooks(plugin)
    assert manifest.device_type == ("acme" if over is None else "cpu")


@pytest.mark.parametrize("over", ["acme", "torch", "torch.", "torch.A", "torch.a.b", "numpy.x"])
def test_the_module_is_written_as_torch_has_it(tmp_path: Path, over: str) -> None:
    with pytest.raises(ConfigurationError, match=r"torch\.NAME"):
        new_backend("acme", tmp_path / "new", over=over)
    assert list(tmp_path.iterdir()) == []


VENDOR = """
import sys
from types import ModuleType

import torch

found = ModuleType("torch.acme")
found.is_available = lambda: True
found.device_count = lambda: 1
found.synchronize = lambda device=None: None
found.mem_get_info = lambda device=None: (3, 7)
torch.acme = found
"""


def test_what_was_seen_of_a_device_is_what_its_package_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch_acme.py").write_text(VENDOR)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert (
        main(
            [
                "new-backend",
                "acme",
                "-o",
                str(tmp_path / "new"),
                "--over",
                "torch.acme",
                "--try",
                "torch_acme",
            ]
        )
        == 0
    )
    package = tmp_path / "new" / "devicekit_acme"
    manifest = Manifest.read(package / "backend.toml")
    assert (manifest.capabilities, manifest.optional) == ({"driver_memory"}, set())
    source = (package / "backend.py").read_text()
    assert "\nimport torch_acme  #" in source
    assert 'claims=frozenset(["driver_memory"])' in source
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch, "acme", None, raising=False)
    space: dict[str, object] = {}
    try:
        exec(compile(source, "backend.py", "exec"), space)
        plugin = space["Backend"]()  # type: ignore[operator]
    finally:
        sys.modules.pop("torch_acme", None)
    check_hooks(plugin, Candidate("acme", "devicekit-acme", "1", "acme:Backend", manifest))
    assert plugin.memory_info(0).total == 7


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ("no_such_package_of_acme", "No module named"),
        ("json", "no torch.acme"),
        ("a; b", "written as in Python"),
    ],
)
def test_a_device_that_cannot_be_tried_writes_nothing(tmp_path: Path, package: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        new_backend("acme", tmp_path / "new", over="torch.acme", tried=package)
    with pytest.raises(ConfigurationError, match=r"torch\.NAME"):
        new_backend("acme", tmp_path / "new", tried=package)
    assert list(tmp_path.iterdir()) == []
