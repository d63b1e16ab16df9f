"""Whoever brings weights, or looks at them, sees the same engine whether one process holds it or two."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from devicekit.engine import Engine, EngineConfig
from devicekit.server.app import create_app
from devicekit.server.run import bind, server
from devicekit.server.settings import ServerSettings
from devicekit.weights import UpdateWeightVersion, VersionReply
from tests.scheduling.processes import Worlds
from tests.tensor_parallel import scenarios
from tests.tensor_parallel.conftest import Written
from tests.tensor_parallel.scenarios import KV_TOKENS, Seen

MODELS = [
    "three key heads",
    "tied",
    *(pytest.param(one, marks=pytest.mark.thorough) for one in ("llama", "biased", "mixtral", "gemma3")),
]


@pytest.mark.parametrize("model", MODELS)
def test_weights_are_whole_wherever_they_come_from_and_whoever_asks(
    worlds: Worlds, written: Written, model: str
) -> None:
    first, second = written(model), written(model, 2)
    whole = Engine.open(first, "cpu", config=EngineConfig(kv_tokens=KV_TOKENS))
    seen: list[Seen] = worlds(2).play(scenarios.replace, first, second)  # type: ignore[assignment]
    expected = scenarios.replacements(whole, second)
    assert expected["trusted"]
    assert expected["differ"]
    for name, value in expected.items():
        assert seen[0].said[name] == value, name


def test_weights_lent_by_another_process_are_cut_where_they_arrive(worlds: Worlds, written: Written) -> None:
    first, second = written("llama"), written("llama", 2)
    seen: list[Seen] = worlds(2).play(scenarios.lent, first, second)  # type: ignore[assignment]
    assert seen[0].said["lent"] == ""
    assert seen[0].said["sum"] == checksum(second)


def test_weights_that_a_trainer_broadcasts_are_cut_where_they_arrive(
    worlds: Worlds, written: Written
) -> None:
    first, second = written("tied"), written("tied", 2)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with ThreadPoolExecutor() as threads:
        sent = threads.submit(scenarios.train, second, port)
        seen: list[Seen] = worlds(2).play(scenarios.trained, first, second, port)  # type: ignore[assignment]
        sent.result()
    assert seen[0].said["joined"] == "Joined 'weight_update_group'."
    assert seen[0].said["sum"] == checksum(second)


def test_weights_of_a_peer_are_cut_where_they_arrive(worlds: Worlds, written: Written) -> None:
    first, second = written("tied"), written("tied", 2)
    peer = Engine.open(second, "cpu", config=EngineConfig(kv_tokens=KV_TOKENS))
    assert peer.perform(UpdateWeightVersion("name", "second"), VersionReply).success
    settings = ServerSettings(port=0, drain_seconds=0)
    listener = bind(settings)
    listener.listen()
    running = server(create_app(peer, settings))
    with ThreadPoolExecutor() as threads:
        ending = threads.submit(running.run, sockets=[listener])
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            [seen, _] = worlds(2).play(scenarios.from_peer, first, url, checksum(second))
        finally:
            running.should_exit = True
            ending.result()
    assert isinstance(seen, Seen)
    assert "gave other weights under the name 'second'" in str(seen.said["why"])
    assert seen.said["sum"] == checksum(second)


def test_what_one_rank_cannot_write_is_taken_back_on_both(worlds: Worlds, written: Written) -> None:
    first, second = written("llama"), written("llama", 2)
    seen: list[Seen] = worlds(2).play(scenarios.half_written, first, second)  # type: ignore[assignment]
    said = seen[0].said
    assert "rank 1: PartlyWritten" in str(said["why"])
    assert "taken back" in str(said["why"])
    assert said["sum"] == checksum(first)
    assert "rank 1: PartlyWritten" in str(said["why not"])
    assert said["holds"] == ["weights"]
    assert said["mended"] == checksum(second)


def test_values_that_are_no_numbers_are_refused_on_both_though_one_rank_holds_them(
    worlds: Worlds, written: Written
) -> None:
    first = written("llama")
    seen: list[Seen] = worlds(2).play(scenarios.no_numbers, first)  # type: ignore[assignment]
    assert "model.layers.1.mlp.up_proj.weight holds values that are NaN" in str(seen[0].said["why"])
    assert seen[0].said["sum"] == checksum(first)


def checksum(path: str) -> str:
    whole = Engine.open(path, "cpu", config=EngineConfig(kv_tokens=KV_TOKENS))
    return scenarios.total(whole)
