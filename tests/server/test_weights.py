"""Weight updates over HTTP: what they answer, what they leave behind, and where weights may come from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.server.conftest import Models, Serve, Server


@pytest.fixture
def server(serve: Serve) -> Iterator[Server]:
    with serve() as running:
        yield running


def _version(server: Server) -> str:
    return server.get("/get_weight_version").json()["weight_version"]


def test_new_weights_answer_the_next_request_and_old_ones_can_come_back(
    server: Server, models: Models
) -> None:
    old = server.generate()["output_ids"]
    answer = server.post("/update_weights_from_disk", {"model_path": str(models.b), "weight_version": "2"})
    assert answer.status_code == 200
    found = answer.json()
    assert (found["success"], found["outcome"], found["weight_version"]) == (True, "updated", "2")
    assert found["num_paused_requests"] == 0
    assert found["tensors"] > 0
    new = server.generate()
    assert new["output_ids"] != old
    assert new["meta_info"]["weight_version"] == "2"
    assert _version(server) == server.get("/weight_version").json()["weight_version"] == "2"
    assert server.get("/model_info").json()["model_path"] == str(models.b)
    server.post("/update_weights_from_disk", {"model_path": str(models.a), "flush_cache": False})
    assert server.generate()["output_ids"] == old


def test_a_request_that_two_versions_answered_says_which_made_what(server: Server, models: Models) -> None:
    params = {"max_new_tokens": 60, "temperature": 0, "ignore_eos": True}
    with server.streaming({"text": "The sea", "sampling_params": params}) as stream:
        next(stream)
        server.post("/pause_generation", {"mode": "in_place"})
        document = {"model_path": str(models.b), "weight_version": "2", "flush_cache": False}
        assert server.post("/update_weights_from_disk", document).status_code == 200
        server.post("/continue_generation")
        [*_, last] = stream
    first, second = last["meta_info"]["weight_versions"]
    assert (first["version"], first["start"], second["version"], second["end"]) == ("default", 0, "2", 60)
    assert first["end"] == second["start"] > 0
    assert last["meta_info"]["weight_version"] == "2"


def test_updated_but_not_flushed_is_told_as_such(server: Server, models: Models) -> None:
    with server.running():
        server.post("/pause_generation", {"mode": "in_place"})
        answer = server.post("/update_weights_from_disk", {"model_path": str(models.b)})
        assert answer.status_code == 400
        assert answer.json()["outcome"] == "updated_not_flushed"
        assert answer.json()["blockers"] == [{"name": "running", "count": 1}]


def test_abort_all_requests_makes_way(server: Server, models: Models) -> None:
    with server.running() as stream:
        document = {"model_path": str(models.b), "abort_all_requests": True}
        assert server.post("/update_weights_from_disk", document).status_code == 200
        [*_, last] = stream
    assert last["meta_info"]["finish_reason"]["type"] == "abort"


def _outside(models: Models, tmp_path: Path) -> str:
    return str(shutil.copytree(models.b, tmp_path / "outside"))


def _link(models: Models, tmp_path: Path) -> str:
    link = models.root / "link"
    link.unlink(missing_ok=True)
    link.symlink_to(shutil.copytree(models.b, tmp_path / "outside"))
    return str(link)


def _climbing(models: Models, tmp_path: Path) -> str:
    shutil.copytree(models.b, tmp_path / "outside")
    return f"{models.root}/a/../../{tmp_path.name}/outside"


@pytest.mark.parametrize("path", [_outside, _link, _climbing])
def test_weights_come_from_allowed_directories_only(
    server: Server, models: Models, tmp_path: Path, path: object
) -> None:
    before = server.generate()["output_ids"]
    answer = server.post("/update_weights_from_disk", {"model_path": path(models, tmp_path)})
    assert answer.status_code == 400
    assert "--allowed-weights-root" in answer.json()["error"]["message"]
    assert (_version(server), server.generate()["output_ids"]) == ("default", before)


def test_links_within_the_allowed_directories_are_fine(server: Server, models: Models) -> None:
    link = models.root / "within"
    link.symlink_to(models.b)
    assert server.post("/update_weights_from_disk", {"model_path": str(link)}).status_code == 200


def test_more_directories_can_be_allowed(serve: Serve, models: Models, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(models.b, tmp_path / "elsewhere")
    with serve(allowed_weights_roots=(tmp_path,)) as server:
        assert server.post("/update_weights_from_disk", {"model_path": str(elsewhere)}).status_code == 200
        assert server.post("/update_weights_from_disk", {"model_path": str(models.b)}).status_code == 400


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({}, "model_path"),
        ({"model_path": 7}, "model_path"),
        ({"model_path": "a\0b"}, "path"),
        ({"model_path": "{root}/nothing"}, "no model directory"),
        ({"model_path": "{root}/a/config.json"}, "no model directory"),
        ({"model_path": "{root}/b", "load_format": "pt"}, "safetensors"),
        ({"model_path": "{root}/pickled"}, "pickle"),
    ],
)
def test_what_is_no_source_of_weights_is_refused(
    server: Server, models: Models, document: dict[str, object], reason: str
) -> None:
    pickled = models.root / "pickled"
    if not pickled.exists():
        shutil.copytree(models.b, pickled, ignore=shutil.ignore_patterns("*.safetensors"))
        torch.save({}, pickled / "pytorch_model.bin")
    given = {
        k: v.replace("{root}", str(models.root)) if isinstance(v, str) else v for k, v in document.items()
    }
    answer = server.post("/update_weights_from_disk", given)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]
    assert _version(server) == "default"
    assert server.get("/health_generate").status_code == 200
