"""Builds installed distributions, real enough for the packaging metadata, in a directory on ``sys.path``."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.required import SOURCE


class Site:
    """A directory of installed distributions."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def install(
        self,
        name: str = "acme",
        code: str = SOURCE,
        *,
        distribution: str | None = None,
        version: str = "1.0",
        module: str | None = None,
        target: str | None = None,
        manifest: str | None = None,
        **keys: object,
    ) -> str:
        """Install a backend; ``keys`` go into its manifest. Returns the distribution's name."""
        distribution = distribution or f"devicekit-{name}"
        module = module or distribution.replace("-", "_")
        if manifest is None:
            table = {"name": name, "device_type": "cpu", "contract": ">=1.0,<2", "indexed": False, **keys}
            manifest = "[backend]\n" + "\n".join(f"{key} = {_toml(value)}" for key, value in table.items())
        package = self.path / module
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text(textwrap.dedent(code), encoding="utf-8")
        (package / "backend.toml").write_text(manifest, encoding="utf-8")
        info = self.path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        entry = f"[devicekit.backends]\n{name} = {target or module + ':Backend'}\n"
        (info / "entry_points.txt").write_text(entry)
        return distribution

    def package(self, distribution: str, version: str) -> None:
        """Install a distribution that is no backend."""
        info = self.path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")

    def imported(self) -> set[str]:
        """Top-level modules of this site that have been imported."""
        return {name for name in sys.modules if "." not in name and (self.path / name).is_dir()}


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An empty site in front of ``sys.path``; the environment's own backends are out of sight."""
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(path)
    everything = metadata.distributions

    def only_here(**wanted: str) -> Iterator[metadata.Distribution]:
        for one in everything(**wanted):
            if wanted or Path(str(one.locate_file(""))).resolve().is_relative_to(tmp_path):
                yield one

    monkeypatch.setattr(metadata, "distributions", only_here)
    before = set(sys.modules)
    yield Site(path)
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.fixture
def child_environment(site: Site) -> dict[str, str]:
    """Variables for a fresh interpreter that sees ``site``."""
    import os

    paths = [str(site.path), *(entry for entry in sys.path if entry)]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DEVICEKIT_")}
    return {**kept, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
