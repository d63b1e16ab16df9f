"""Decoding replayed from captured graphs gives the tokens of decoding without, whatever happens in between."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import devicekit
from devicekit import hookimpl
from devicekit.contract.errors import ConfigurationError
from devicekit.engine import Engine, EngineConfig
from devicekit.engine.generation import Generation
from devicekit.scheduling.messages import PauseMode
from devicekit.scheduling.request import SamplingParams
from devicekit.testing import Fault, LoseDevice, OutOfMemory, Raise, Simulator
from devicekit.weights.operations import UpdateWeightsFromTensor
from tests.architectures.tiny import write_tiny
from tests.runners.conftest import Example
from tests.seeds import drawn_seed

GREEDY = SamplingParams(max_new_tokens=10, temperature=0.0, ignore_eos=True)
SHORT = [[1, 2, 3, 4], [9] * 20, [5]]


def opened(path: Path, graphs: bool | None, device: str = "sim", **settings: Any) -> Engine:
    usual = {"max_running": 4, "kv_tokens": 2048, "window_kv_tokens": 0}
    # No pass may depend on how long others took.
    sizes: dict[str, Any] = {**usual, "max_slowdown": None, **settings}
    return Engine.open(path, device, config=EngineConfig(**sizes, decode_graphs=graphs))


def plainly(path: Path, **settings: Any) -> Engine:
    """What others are held to: on the host, where nothing is captured and a test takes a third of the time."""
    return opened(path, False, "cpu", **settings)


def tokens(engine: Engine, prompts: Sequence[Sequence[int]] = SHORT) -> list[list[int]]:
    return [one.tokens for one in engine.generate(prompts, GREEDY)]


def warmed(engine: Engine, prompts: Sequence[Sequence[int]] = SHORT) -> Engine:
    """An engine that has captured what these prompts need, and trusts it."""
    tokens(engine, prompts)
    assert engine.graphs.figures.graphs
    assert engine.graphs.figures.replays
    return engine


@pytest.fixture
def both(example: Example, sim_device: devicekit.Device) -> tuple[Engine, Engine]:
    """One model decoding from graphs, and decoding without."""
    return opened(example(), True), plainly(example())


# -- Tokens -------------------------------------------------------------------------------------------------------


def asked(rng: random.Random) -> list[tuple[list[int], SamplingParams]]:
    """Requests of lengths on both sides of a border of keys, of all that costs something after a pass."""
    chosen: list[tuple[list[int], SamplingParams]] = []
    for length in (3, 249, 254, 256, 17, 1):
        prompt = [rng.randrange(1, 380) for _ in range(length)]
        warm = rng.random() < 0.5
        params = SamplingParams(
            max_new_tokens=rng.randrange(6, 18),
            temperature=0.8 if warm else 0.0,
            top_k=20 if warm and rng.random() < 0.5 else 0,
            seed=rng.randrange(1 << 30),
            logprobs=rng.choice([None, 0, 3]),
            frequency_penalty=rng.choice([0.0, 0.5]),
            ignore_eos=True,
        )
        chosen.append((prompt, params))
    return chosen


def run(
    engine: Engine, requests: list[tuple[list[int], SamplingParams]], rng: random.Random
) -> list[Generation]:
    """Requests come one after the other, a few steps apart, so that batches grow, shrink and mix with prompts."""
    made: list[Generation] = []
    for prompt, params in requests:
        made.append(engine.submit(prompt, params))
        for _ in range(rng.randrange(6)):
            engine.step()
    while not all(one.done for one in made):
        engine.step()
    return made


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {}),
        ("llama", {"page_size": 1, "max_running": 5}),
        ("qwen3", {"max_batch_tokens": 70}),
        ("gpt2", {}),
        ("mistral", {"page_size": 4}),  # a window in every layer
        ("gemma2", {}),  # windows in some, soft caps in all
    ],
)
def test_tokens_are_those_of_decoding_without(
    architecture: str, settings: dict[str, Any], example: Example, sim_device: devicekit.Device
) -> None:
    seed = drawn_seed("DECODE_GRAPHS_SEED")
    requests = asked(random.Random(seed))
    path = example(architecture)
    engines = [plainly(path, **settings), opened(path, True, checked=True, **settings)]
    plain, replayed = (run(engine, requests, random.Random(seed)) for engine in engines)
    assert [one.tokens for one in replayed] == [one.tokens for one in plain], seed
    for one, other in zip(plain, replayed, strict=True):
        found = [token.logprob for token in other.logprobs]
        assert found == pytest.approx([token.logprob for token in one.logprobs], abs=1e-3)
    figures = engines[1].graphs.figures
    assert figures.refusal == ""
    assert figures.graphs >= 3, "sizes of batches and of keys"
    assert figures.replays > figures.eager
    assert engines[0].graphs.figures.replays == 0


def test_a_bias_by_position_is_not_captured(tmp_path: Path, sim_device: devicekit.Device) -> None:
    path = write_tiny("bloom", tmp_path)
    engine = opened(path, True)
    assert tokens(engine) == tokens(plainly(path))
    figures = engine.graphs.figures
    assert (figures.graphs, figures.replays) == (0, 0)
    assert "bias by position" in figures.refusal


def test_a_draft_is_captured_beside_its_target(example: Example, sim_device: devicekit.Device) -> None:
    sizes = EngineConfig(max_running=4, kv_tokens=2048)
    alone = warmed(opened(example(), True)).graphs.figures
    engine = Engine.open(example(), "sim", config=sizes, draft=example(seed=2))
    assert tokens(engine) == tokens(plainly(example()))
    assert engine.graphs.figures.graphs == 2 * alone.graphs


# -- Where there can be none --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "device", "settings", "reason"),
    [
        ("llama", "cpu", {}, "lacks create_graph"),
        ("lfm2", "sim", {}, "recurrent layers"),
        ("gemma2", "sim", {"max_batch_tokens": 16, "window_kv_tokens": 96}, "a pool of their own"),
    ],
)
def test_where_none_can_be_had_that_is_said_and_asking_for_them_is_refused(
    architecture: str,
    device: str,
    settings: dict[str, object],
    reason: str,
    example: Example,
    sim_device: devicekit.Device,
) -> None:
    engine = opened(example(architecture), None, device, **{"max_running": 2, "kv_tokens": 512, **settings})
    assert reason in engine.graphs.figures.refusal
    assert tokens(engine)
    with pytest.raises(ConfigurationError, match=f"decode_graphs cannot be had: .*{reason}"):
        opened(example(architecture), True, device, **{"max_running": 2, "kv_tokens": 512, **settings})


def test_they_are_the_default_of_an_accelerator_and_can_be_left(
    example: Example, sim_device: devicekit.Device
) -> None:
    warmed(opened(example(), None))
    off = opened(example(), False)
    tokens(off)
    assert off.graphs.figures.graphs == 0
    assert off.graphs.figures.refusal == "decode_graphs is off"


def test_a_pass_that_reads_values_on_the_host_decodes_without(
    both: tuple[Engine, Engine], caplog: pytest.LogCaptureFixture
) -> None:
    captured, plain = both
    for engine in both:
        engine.runner.model.model.layers[1].register_forward_hook(
            lambda module, args, out: float(out.sum()) and None
        )
    assert tokens(captured) == tokens(plain)
    assert tokens(captured) == tokens(plain)
    figures = captured.graphs.figures
    assert (figures.graphs, figures.replays) == (0, 0)
    assert "cannot be captured: CaptureError" in figures.refusal
    assert len([one for one in caplog.messages if "without capturing" in one]) == 1


def test_a_graph_that_gives_other_logits_than_the_pass_is_found_before_it_is_used(
    both: tuple[Engine, Engine],
) -> None:
    captured, _ = both
    passes = iter(range(1, 1000))
    hidden = captured.runner.model.model.layers[0]
    hidden.register_forward_hook(lambda module, args, out: out * next(passes))  # what is fixed in a capture
    tokens(captured)
    figures = captured.graphs.figures
    assert (figures.graphs, figures.replays) == (0, 0)
    assert "other logits" in figures.refusal


# -- What keeps them, and what does not ---------------------------------------------------------------------------


def new_weights(example: Example) -> dict[str, torch.Tensor]:
    return dict(plainly(example(seed=2)).runner.named_weights())


def test_they_stay_over_flushes_pauses_and_weights_written_in_place(
    both: tuple[Engine, Engine], example: Example
) -> None:
    captured, _ = both
    warmed(captured)
    there = captured.graphs.figures.graphs
    new = new_weights(example)
    ends: list[list[list[int]]] = []
    for engine in both:
        made: list[Generation] = []
        for mode in (PauseMode.IN_PLACE, PauseMode.RETRACT):
            made += [engine.submit(prompt, GREEDY) for prompt in SHORT]
            for _ in range(5):
                engine.step()
            engine.pause(mode)
            assert engine.update_weights(UpdateWeightsFromTensor("u", tensors=new, flush_cache=False)).success
            assert engine.continue_generation().success
            while not all(one.done for one in made):
                engine.step()
        assert engine.flush().success
        ends.append([one.tokens for one in made] + tokens(engine))
    assert ends[0] == ends[1]
    figures = captured.graphs.figures
    assert (figures.graphs, figures.refusal) == (there, "")


@pytest.mark.parametrize(
    ("tags", "backup"),
    [(("weights",), True), (("weights",), False), (("kv_cache",), True), (("graphs",), True), ((), False)],
    ids=str,
)
def test_released_memory_takes_them_along(
    tags: tuple[str, ...],
    backup: bool,
    both: tuple[Engine, Engine],
    example: Example,
    sim_device: devicekit.Device,
) -> None:
    captured, plain = both
    expected = tokens(plain)
    warmed(captured)
    new = new_weights(example)
    in_use = sim_device.memory_stats().allocated or 0
    assert captured.release_memory(*tags, backup_weights=backup).success
    assert captured.graphs.figures.graphs == 0
    assert (sim_device.memory_stats().allocated or 0) < in_use
    for engine in both:
        if engine is plain:
            engine.release_memory(*tags, backup_weights=backup)
        assert engine.resume_memory(*tags).success
        if not backup:
            assert engine.update_weights(UpdateWeightsFromTensor("u", tensors=new)).success
    assert tokens(captured) == tokens(plain)
    assert (tokens(plain) == expected) == backup
    assert tokens(captured) == tokens(plain)
    figures = captured.graphs.figures
    assert figures.graphs
    assert figures.refusal == ""


def test_without_their_memory_requests_go_on_and_nothing_is_captured(both: tuple[Engine, Engine]) -> None:
    captured, plain = both
    warmed(captured)
    assert captured.release_memory().success
    assert captured.resume_memory("weights", "kv_cache").success
    assert captured.resume_memory().success  # the graphs, too
    assert captured.release_memory("graphs").success
    before = captured.graphs.figures
    weights = {name: tensor.cpu() for name, tensor in plain.runner.named_weights()}
    assert captured.update_weights(UpdateWeightsFromTensor("u", tensors=weights)).success
    assert tokens(captured) == tokens(plain)
    after = captured.graphs.figures
    assert (after.graphs, after.replays) == (0, before.replays)
    assert after.eager > before.eager
    assert "released" in after.refusal
    assert captured.resume_memory("graphs").success
    warmed(captured)


def test_a_client_that_resumes_all_but_them_is_served(both: tuple[Engine, Engine]) -> None:
    captured, plain = both
    warmed(captured)
    assert captured.release_memory(backup_weights=True).success
    for tag in ("weights", "kv_cache"):
        assert captured.resume_memory(tag).success
    assert tokens(captured) == tokens(plain)


def test_weights_that_are_no_numbers_leave_nothing_behind(both: tuple[Engine, Engine]) -> None:
    """Rows to spare write somewhere, and all that is hidden is read from one place."""
    captured, plain = both
    warmed(captured)
    sound = {name: tensor.cpu() for name, tensor in plain.runner.named_weights()}
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in sound.items()}
    made = [captured.submit(prompt, GREEDY) for prompt in SHORT]
    for _ in range(4):
        captured.step()
    captured.pause(PauseMode.IN_PLACE)
    replays = captured.graphs.figures.replays
    update = UpdateWeightsFromTensor("broken", tensors=broken, flush_cache=False)
    assert captured.update_weights(update).success
    captured.continue_generation()
    while not all(one.done for one in made):
        captured.step()
    assert captured.graphs.figures.replays > replays, "they decoded with them"
    assert captured.update_weights(UpdateWeightsFromTensor("sound", tensors=sound)).success
    full = [*SHORT, [7, 7]]  # without rows to spare
    assert tokens(captured, full) == tokens(plain, full)


# -- Failures -----------------------------------------------------------------------------------------------------


def test_a_pass_that_runs_out_of_memory_gets_theirs(
    both: tuple[Engine, Engine], sim_machine: Simulator
) -> None:
    captured, plain = both
    warmed(captured)
    with sim_machine.inject(Fault("allocate", OutOfMemory(), nth=5)):
        assert tokens(captured) == tokens(plain)
    figures = captured.graphs.figures
    assert figures.graphs == 0
    assert "out of memory" in figures.refusal
    assert captured.release_memory("graphs").success
    assert captured.resume_memory("graphs").success
    assert tokens(warmed(captured)) == tokens(plain)


class Refusing:
    """Raises in the place of every new graph."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    @hookimpl(wrapper=True)
    def create_graph(self, index: int, pool: object | None) -> Iterator[None]:
        raise self.error
        yield


@contextmanager
def observed(device: devicekit.Device, observer: object) -> Iterator[None]:
    device.backend.add_observer(observer)
    try:
        yield
    finally:
        device.backend.remove_observer(observer)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("injected"), "no memory for another"),
        (RuntimeError("injected"), "cannot be captured: .*injected"),
    ],
)
def test_one_that_cannot_be_captured_changes_no_token(
    error: Exception, reason: str, both: tuple[Engine, Engine], sim_device: devicekit.Device
) -> None:
    captured, plain = both
    warmed(captured, SHORT[:1])
    there = captured.graphs.figures.graphs
    with observed(sim_device, Refusing(error)):
        assert tokens(captured) == tokens(plain)
    figures = captured.graphs.figures
    assert figures.graphs == there, "those that are there go on"
    assert re.search(reason, figures.refusal)


def test_a_replay_that_fails_ends_its_requests_and_no_others(
    both: tuple[Engine, Engine], sim_machine: Simulator
) -> None:
    captured, plain = both
    warmed(captured)
    with sim_machine.inject(Fault("kernel:graph", Raise(lambda: RuntimeError("injected")), nth=2)):
        failed = captured.generate(SHORT, GREEDY)
    assert all(one.finish is not None and "injected" in one.finish.message for one in failed)
    assert tokens(captured) == tokens(plain)


def test_a_device_that_is_lost_in_a_replay_is_told(
    both: tuple[Engine, Engine], sim_machine: Simulator
) -> None:
    captured, _ = both
    warmed(captured)
    with sim_machine.inject(Fault("kernel:graph", LoseDevice())):
        failed = captured.generate(SHORT, GREEDY)
        assert all(one.finish is not None and "lost" in one.finish.message for one in failed)
        assert not captured.scheduler.state.healthy


# -- What they cost -----------------------------------------------------------------------------------------------


class Pools:
    """Counts the pools and the graphs that a device is asked for."""

    def __init__(self) -> None:
        self.pools: list[object] = []
        self.given: list[object] = []

    @hookimpl(wrapper=True)
    def graph_pool(self, index: int) -> Iterator[None]:
        made = yield
        self.pools.append(made)
        return made

    @hookimpl(wrapper=True)
    def create_graph(self, index: int, pool: object | None) -> Iterator[None]:
        self.given.append(pool)
        return (yield)


def test_all_share_one_pool(both: tuple[Engine, Engine], sim_device: devicekit.Device) -> None:
    pools = Pools()
    with observed(sim_device, pools):
        for prompts in (SHORT, [list(range(1, 255))]):  # grows past a border of keys
            warmed(both[0], prompts)
    assert len(pools.given) == both[0].graphs.figures.graphs == 3
    assert len(pools.pools) == 1
    assert all(pool is pools.pools[0] for pool in pools.given)


WAITS = ("wait", "synchronize", "stream.synchronize", "event.synchronize")


@pytest.mark.parametrize("captured", [True, False], ids=["captured", "eager"])
@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SamplingParams(
            max_new_tokens=10, temperature=0.7, top_p=0.9, logprobs=3, presence_penalty=0.3, ignore_eos=True
        ),
    ],
    ids=["greedy", "everything"],
)
def test_the_host_waits_once_in_a_step(
    captured: bool,
    params: SamplingParams,
    example: Example,
    sim_machine: Simulator,
    sim_device: devicekit.Device,
) -> None:
    engine = opened(example(), captured)
    if captured:
        warmed(engine)
    made = [engine.submit(prompt, params) for prompt in SHORT]
    steps = 0
    with sim_machine.inject() as script:
        while not all(one.done for one in made):
            steps += engine.step().ran > 0
    assert sum(script.seen[name] for name in WAITS) == steps
    if captured:
        assert script.seen["kernel:graph"] == steps - 1
        assert script.seen["kernel"] < 100 * steps
