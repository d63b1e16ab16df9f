"""What happens to a checkpoint's files on disk does not reach the weights that are served."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server.conftest import Models, Serve, Server


@pytest.fixture(scope="module")
def copies(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("copies")
    return Models(
        root, Path(shutil.copytree(models.a, root / "a")), Path(shutil.copytree(models.b, root / "b"))
    )


@pytest.fixture(scope="module")
def server(serve: Serve, copies: Models) -> Iterator[Server]:
    with serve(copies.a, allowed_weights_roots=(copies.root,)) as running:
        yield running


def test_a_checkpoint_that_is_overwritten_and_cut_short_is_served_as_it_was(
    server: Server, copies: Models
) -> None:
    before = server.generate()["output_ids"]
    checksum = server.post("/weights_checker").json()["per_engine_checksum"]
    shutil.copyfile(copies.b / "model.safetensors", copies.a / "model.safetensors")  # in place, as cp does
    server.post("/flush_cache")
    assert server.generate()["output_ids"] == before
    os.truncate(copies.a / "model.safetensors", 100)
    server.post("/flush_cache")
    assert server.generate()["output_ids"] == before
    assert server.post("/weights_checker").json()["per_engine_checksum"] == checksum


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[:8] = (2**62).to_bytes(8, "little")
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("spoil", [_cut, _pipe, _endless, _header, Path.unlink], ids=lambda one: one.__name__)
def test_an_update_from_a_spoilt_checkpoint_is_refused_and_changes_nothing(
    server: Server, models: Models, copies: Models, tmp_path: Path, spoil: Callable[[Path], None], name: str
) -> None:
    before = server.post("/weights_checker").json()["per_engine_checksum"]
    spoilt = Path(shutil.copytree(models.b, copies.root / f"{spoil.__name__} {name}"))
    spoil(spoilt / name)
    answer = server.post("/update_weights_from_disk", {"model_path": str(spoilt)})
    assert (answer.status_code, answer.json()["success"]) == (400, False), answer.text
    assert server.post("/weights_checker").json()["per_engine_checksum"] == before


def test_an_update_while_somebody_writes_is_refused_and_may_be_asked_for_again(
    server: Server, models: Models, copies: Models
) -> None:
    fresh = Path(shutil.copytree(models.b, copies.root / "fresh"))
    before = server.post("/weights_checker").json()["per_engine_checksum"]
    with (fresh / "model.safetensors").open("r+b") as writer:
        writer.write(b"")
        answer = server.post("/update_weights_from_disk", {"model_path": str(fresh)})
        assert answer.status_code == 400
        assert "open for writing" in answer.json()["message"]
        assert server.post("/weights_checker").json()["per_engine_checksum"] == before
    assert server.post("/update_weights_from_disk", {"model_path": str(fresh)}).status_code == 200
    assert server.post("/weights_checker").json()["per_engine_checksum"] != before
