"""Builds wheel and sdist of every distribution into dist/, and checks what a stranger would get.

``make dist``; with ``--release``, what only a release must have is asked for as well: an address that exists.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PLACEHOLDER = "/OWNER/"
_NEVER = re.compile(r"(^|/)(tests?|bench|conftest\.py|\.venv|__pycache__|examples|tools)(/|$)")
_WANTED = ("Name", "Version", "Summary", "License-Expression", "Requires-Python", "Project-URL", "Classifier")
_MOST = 2 << 20  # bytes of a file that is searched for paths


def projects(root: Path = ROOT) -> list[Path]:
    """Every folder that is a distribution: the product, the suite, the backends, the host engines' plugins."""
    patterns = ("pyproject.toml", "conformance/pyproject.toml", "plugins/*/pyproject.toml")
    found = [one.parent for pattern in patterns for one in sorted(root.glob(pattern))]
    return [*found, *(one.parent for one in sorted(root.glob("plugins/hosts/*/pyproject.toml")))]


def build(project: Path, target: Path, kinds: Sequence[str] = ("wheel", "sdist")) -> None:
    """Build one distribution with the hatchling of this environment.

    Raises:
        RuntimeError: it cannot be built; the text is hatchling's.
    """
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target)]
    command += [part for kind in kinds for part in ("-t", kind)]
    environment = {"SOURCE_DATE_EPOCH": "1577836800", **os.environ}  # equal sources give equal files
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{project.name} cannot be built: {done.stderr.strip()}")


@dataclass(frozen=True, slots=True)
class Archive:
    """A wheel or an sdist: its files, and what it says of itself."""

    path: Path
    files: dict[str, bytes]

    @classmethod
    def read(cls, path: Path) -> Archive:
        """Everything in it."""
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                return cls(path, {name: wheel.read(name) for name in wheel.namelist()})
        with tarfile.open(path) as sdist:
            members = [one for one in sdist.getmembers() if one.isfile()]
            opened = ((one.name.partition("/")[2], sdist.extractfile(one)) for one in members)
            return cls(path, {name: file.read() for name, file in opened if file is not None})

    @property
    def is_wheel(self) -> bool:
        """Otherwise it is an sdist."""
        return self.path.suffix == ".whl"

    def problems(self, root: Path = ROOT) -> Iterator[str]:
        """What a stranger should not get, or would miss."""
        for name, content in self.files.items():
            if self.is_wheel and _NEVER.search(name):
                yield f"{name} does not belong into a wheel"
            for place in (str(root), str(Path.home()) + "/"):
                if len(content) <= _MOST and place.encode() in content:
                    yield f"{name} names a path of the machine that built it"
        yield from self._metadata_problems()
        packages = {name.split("/")[0] for name in self.files if name.endswith(".py") and "/" in name}
        if self.is_wheel:
            yield from (
                f"{one} has no py.typed" for one in sorted(packages) if f"{one}/py.typed" not in self.files
            )

    def version(self) -> str:
        """As its metadata say."""
        return str(self._metadata()["Version"])

    def addresses(self) -> list[str]:
        """Its project's addresses."""
        return [str(one) for one in self._metadata().get_all("Project-URL", [])]

    def _metadata(self) -> Message:
        name = next(one for one in self.files if one.endswith(".dist-info/METADATA") or one == "PKG-INFO")
        return HeaderParser().parsestr(self.files[name].decode())

    def _metadata_problems(self) -> Iterator[str]:
        metadata = self._metadata()
        yield from (f"its metadata have no {key}" for key in _WANTED if not metadata[key])
        text = metadata.get_payload()
        if not isinstance(text, str) or not text.strip():
            yield "its metadata have no description"


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and check; returns 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tools.dist", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument(
        "--release", metavar="VERSION", help="everything must have this version and a real address"
    )
    options = parser.parse_args(arguments)
    shutil.rmtree(options.out, ignore_errors=True)
    for project in projects():
        build(project, options.out.resolve())
    archives = [Archive.read(path) for path in sorted(options.out.glob("devicekit*"))]
    wrong = [f"{one.path.name}: {problem}" for one in archives for problem in one.problems()]
    versions = {one.version() for one in archives}
    if len(versions) != 1:
        wrong.append(f"the distributions have different versions: {', '.join(sorted(versions))}")
    if options.release:
        wrong += _release_problems(archives, options.release.removeprefix("v"))
    for line in wrong:
        print(line, file=sys.stderr)
    for one in archives:
        print(f"{one.path.name}  {len(one.files)} files, {one.path.stat().st_size:,} B")
    return 1 if wrong or _twine(archives) else 0


def _release_problems(archives: Sequence[Archive], version: str) -> Iterator[str]:
    for one in archives:
        if one.version() != version:
            yield f"{one.path.name}: the release is {version}"
        if any(_PLACEHOLDER in address for address in one.addresses()):
            yield f"{one.path.name}: its addresses still say {_PLACEHOLDER.strip('/')}"


def _twine(archives: Sequence[Archive]) -> int:
    """What twine says of them; 0 where it is not installed, and that is said."""
    command = [sys.executable, "-m", "twine", "check", "--strict", *(str(one.path) for one in archives)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named twine" in done.stderr:
        print("twine is not installed, so that its check was left out: pip install twine", file=sys.stderr)
        return 0
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
