"""Makes distributions of a checkout visible without installing them: ``--plugins DIR``.

A backend is found by its entry point, which is a file of an installed distribution. For every project below the
folder a metadata folder with name, version and entry points is written, as an installer would write it, into a
folder that goes to the front of ``PYTHONPATH`` with the projects' own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from devicekit.contract.errors import ConfigurationError
from devicekit.documents import read_toml
from devicekit.files import UnreadableFile

_Table = Mapping[str, object]
# As packages are named: the folder of the metadata is named so, too.
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9.!+_-]{1,100}")


def search_path(folders: Sequence[Path], metadata: Path) -> list[Path]:
    """Folders for the front of ``PYTHONPATH``.

    Args:
        folders: each a project (it holds a ``pyproject.toml``) or a folder of projects.
        metadata: where the metadata folders are written.

    Raises:
        ConfigurationError: a folder holds no project, or one that cannot be read.
    """
    found: list[Path] = []
    for folder in folders:
        projects = [folder, *sorted(folder.glob("*/"))] if folder.is_dir() else []
        projects = [one.resolve() for one in projects if (one / "pyproject.toml").is_file()]
        if not projects:
            raise ConfigurationError(
                f"There is no project in {folder}: neither it nor a folder in it has a pyproject.toml."
            )
        for project in projects:
            _describe(project, metadata)
        found += projects
    return [metadata, *found] if found else []


def _describe(project: Path, metadata: Path) -> None:
    file = project / "pyproject.toml"
    try:
        table = _table(read_toml(file)["project"])
        name, version = str(table["name"]), str(table.get("version", "0"))
        if not _NAME.fullmatch(name) or not _VERSION.fullmatch(version):
            raise ValueError("name or version is none")
        needed = table.get("dependencies", [])
        if not isinstance(needed, list):
            raise TypeError("dependencies are a list")
        points = _entry_points(table)
    except (UnreadableFile, KeyError, ValueError, TypeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {str(error)[:500]}") from error
    target = metadata / f"{name.replace('-', '_')}-{version}.dist-info"
    target.mkdir(parents=True, exist_ok=True)
    headers = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    headers += [f"Requires-Dist: {one}" for one in needed]
    (target / "METADATA").write_text("\n".join(headers) + "\n", "utf-8")
    (target / "entry_points.txt").write_text(points, "utf-8")


def _entry_points(table: _Table) -> str:
    groups = dict(_table(table.get("entry-points", {})))
    groups.pop("pytest11", None)  # a plugin of pytest's is none of ours to switch on
    lines: list[str] = []
    for group, entries in groups.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in _table(entries).items()), ""]
    return "\n".join(lines)


def _table(value: object) -> _Table:
    if not isinstance(value, dict):
        raise TypeError(f"{str(value)[:100]!r} is no table")
    return value
