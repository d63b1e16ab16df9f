"""Links in a checkpoint lead nowhere but below the directories that weights may come from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from devicekit.server.app import ENDPOINTS
from tests.server.conftest import Models, Serve, Server

_TAKES_PATHS = [one.path for one in ENDPOINTS if "model_path" in one.arguments.model_fields]


@pytest.fixture(scope="module")
def server(serve: Serve, models: Models) -> Iterator[Server]:
    with serve(models.a, allowed_weights_roots=(models.root,)) as running:
        yield running


def _ask(server: Server, models: Models, endpoint: str, path: Path) -> tuple[int, str]:
    """The status and the message of whatever reads weights from a path."""
    answer = server.post(endpoint, {"model_path": str(path), "update_id": "linked"})
    server.post("/discard_weight_update", {"update_id": "linked"})
    server.restore(models)
    return answer.status_code, answer.json()["message"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("endpoint", _TAKES_PATHS)
def test_a_file_that_lies_elsewhere_is_refused_by_its_name(
    server: Server, models: Models, tmp_path: Path, endpoint: str, name: str
) -> None:
    path = Path(shutil.copytree(models.b, models.root / tmp_path.name))
    shutil.move(path / name, tmp_path / name)
    (path / name).symlink_to(tmp_path / name)
    before = server.generate()["output_ids"]
    status, message = _ask(server, models, endpoint, path)
    assert status == 400, message
    assert f"{path / name} is a link to {tmp_path / name}, outside of {models.root}" in message
    assert server.generate()["output_ids"] == before


def _snapshot(models: Models, cache: Path) -> Path:
    """A checkpoint as the cache of a model hub has it: all of its files are links."""
    snapshot = Path(shutil.copytree(models.b, cache / "snapshots" / "one"))
    (cache / "blobs").mkdir()
    for one in snapshot.iterdir():
        blob = cache / "blobs" / one.name.encode().hex()
        shutil.move(one, blob)
        one.symlink_to(Path("..", "..", "blobs", blob.name))
    return snapshot


@pytest.mark.parametrize("endpoint", _TAKES_PATHS)
def test_a_file_that_lies_elsewhere_below_the_root_is_read(
    server: Server, models: Models, tmp_path: Path, endpoint: str
) -> None:
    status, message = _ask(server, models, endpoint, _snapshot(models, models.root / tmp_path.name))
    assert status == 200, message


def test_a_snapshot_of_a_hub_that_is_served_can_be_read_again_and_nothing_beside_it(
    serve: Serve, models: Models, tmp_path: Path
) -> None:
    snapshot = _snapshot(models, tmp_path / "cache")
    with serve(snapshot, allowed_weights_roots=()) as server:
        status, message = _ask(server, models, "/update_weights_from_disk", snapshot)
        assert status == 200, message
        shutil.move(tmp_path / "cache/blobs" / b"config.json".hex(), tmp_path / "config")
        (snapshot / "config.json").unlink()
        (snapshot / "config.json").symlink_to(tmp_path / "config")
        status, message = _ask(server, models, "/update_weights_from_disk", snapshot)
        assert (status, f"is a link to {tmp_path / 'config'}" in message) == (400, True), message
        for other in ("cache", "cache/blobs", "cache/snapshots"):
            status, message = _ask(server, models, "/update_weights_from_disk", tmp_path / other)
            assert (status, "not in a directory" in message) == (400, True), message
