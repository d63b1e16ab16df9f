"""What a stranger gets: wheels with the package and nothing else, and metadata that lead back here."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tools.dist import ROOT, Archive, build, projects

METADATA = """Metadata-Version: 2.4
Name: acme
Version: 1.0
Summary: A backend.
License-Expression: Apache-2.0
Requires-Python: >=3.10
Classifier: Typing :: Typed
Project-URL: Source, https://acme.example/source

What it is.
"""


def wheel(folder: Path, files: dict[str, str], metadata: str = METADATA) -> Archive:
    path = folder / "acme-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, "acme-1.0.dist-info/METADATA": metadata}.items():
            archive.writestr(name, text)
    return Archive.read(path)


GOOD = {"acme/__init__.py": "", "acme/py.typed": ""}


def test_a_good_wheel_has_no_problem(tmp_path):
    assert list(wheel(tmp_path, GOOD).problems()) == []


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ({"tests/test_acme.py": ""}, "does not belong"),
        ({"acme/tests/test_it.py": ""}, "does not belong"),
        ({"bench/__init__.py": "", "bench/py.typed": ""}, "does not belong"),
        ({"acme/conftest.py": ""}, "does not belong"),
        ({"acme/where.py": f"HERE = '{ROOT}/x'"}, "names a path"),
        ({"other/__init__.py": ""}, "no py.typed"),
    ],
)
def test_what_does_not_belong_is_found(tmp_path, extra, problem):
    assert any(problem in one for one in wheel(tmp_path, {**GOOD, **extra}).problems())


@pytest.mark.parametrize("key", ["Summary", "Requires-Python", "Project-URL", "Classifier"])
def test_missing_metadata_are_found(tmp_path, key):
    less = "\n".join(line for line in METADATA.splitlines() if not line.startswith(key))
    assert list(wheel(tmp_path, GOOD, less).problems()) == [f"its metadata have no {key}"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    for project in projects():
        build(project, folder, ["wheel"])
    return [Archive.read(path) for path in sorted(folder.glob("*.whl"))]


def test_no_wheel_of_ours_holds_tests_benches_or_paths(built):
    assert len(built) == len(projects())
    assert [f"{one.path.name}: {problem}" for one in built for problem in one.problems()] == []


def test_every_distribution_has_the_same_version(built):
    assert len({one.version() for one in built}) == 1
