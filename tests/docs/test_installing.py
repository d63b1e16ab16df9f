"""The lines by which the README installs: each in an environment of its own, from this checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.docs.blocks import CHECKOUT, blocks_of

README = CHECKOUT / "README.md"


def install_lines() -> list[str]:
    """The pip lines that need no network, as they are printed."""
    blocks = [block for block in blocks_of(README) if block.language == "bash" and block.needs is None]
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.text.splitlines()]
    return [line for line in lines if line.startswith(("pip install .", "pip install '."))]


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment without devicekit; it sees the installed packages of this one instead of an index."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    [site] = folder.glob("lib/python*/site-packages")
    for old in [*site.glob("setuptools*"), *site.glob("pkg_resources")]:  # would hide the newer one
        shutil.rmtree(old)
    # A folder that a .pth names is searched, and its own .pth files, which show this checkout, are not read.
    (site / "installed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin"


@pytest.mark.skipif(os.name != "posix", reason="the lines are a shell's")
@pytest.mark.parametrize("line", install_lines())
def test_an_install_line_of_the_readme_works(line: str, binaries: Path, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    environ |= {
        "PATH": f"{binaries}{os.pathsep}{environ['PATH']}",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "false",  # pip's spelling of "without"
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }

    def run(command: str, folder: Path) -> str:
        done = subprocess.run(
            ["bash", "-euc", command],
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    run(line, CHECKOUT)
    where = run("python -c 'import devicekit; print(devicekit.__file__)'", tmp_path)
    assert Path(where.strip()).is_relative_to(binaries.parent)
    assert "usage: devicekit" in run("devicekit --help", tmp_path)
    wanted = {part.strip("'") for part in line.split()[2:]}
    if "./plugins/cpu" in wanted:
        assert "yes" in run("devicekit list", tmp_path)
    if "./conformance" in wanted:
        assert "DK-" in run("devicekit conformance list -v || devicekit conformance list", tmp_path)
    gone = run("pip uninstall --yes devicekit devicekit-cpu devicekit-conformance", tmp_path)
    assert "Successfully uninstalled devicekit-" in gone
    missing = subprocess.run(
        [binaries / "python", "-c", "import devicekit"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        check=False,
    )
    assert missing.returncode != 0
