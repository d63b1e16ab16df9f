"""Example models in a scratch folder, and a server that is started as a page says."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from devicekit.cli import main
from tests.docs.blocks import blocks_of, commands_in
from tools.warm import Warm


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example") / "models"
    assert main(["example-model", str(folder)]) == 0
    return folder


@pytest.fixture
def scratch(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the example models in it, as the pages begin."""
    shutil.copytree(models, tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def served(request: pytest.FixtureRequest, warm: Warm, scratch: Path) -> Iterator[str]:
    """The port at which the page's first `devicekit serve` serves, as it is printed there."""
    page: Path = request.param
    lines = [
        words for block in blocks_of(page) if block.language == "bash" for words in commands_in(block.text)
    ]
    started = (words[1:] for words in lines if words[:2] == ["devicekit", "serve"])
    arguments = next(started, ["serve", "--model", "models/v1"])
    command = [*warm.python, "-m", "devicekit", *arguments, "--port", "0", "--device", "cpu"]
    log = (scratch / "serve.log").open("w")
    with (
        log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=scratch) as process,
    ):
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("Serving on http://"), line
            yield line.strip().rpartition(":")[2]
        finally:
            process.terminate()
