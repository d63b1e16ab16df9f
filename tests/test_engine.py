"""The engine on a real model: its tokens are the model's own, whatever the scheduler did on the way."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedModel

from devicekit.contract.errors import ConfigurationError
from devicekit.engine import Engine, EngineConfig
from devicekit.memory.sizing import NotEnoughMemory
from devicekit.scheduling.errors import InvalidOperation, InvalidRequest
from devicekit.scheduling.messages import Continue, Pause, PauseMode, UpdateOutcome
from devicekit.scheduling.request import FinishKind, SamplingParams
from devicekit.testing.waiting import wait_until

GREEDY = SamplingParams(max_new_tokens=24, temperature=0.0)


@pytest.fixture(scope="module")
def reference(checkpoints: tuple[Path, Path]) -> dict[str, PreTrainedModel]:
    return {
        version: AutoModelForCausalLM.from_pretrained(path).eval()
        for version, path in zip(("v1", "v2"), checkpoints, strict=True)
    }


@pytest.fixture
def engine(checkpoints: tuple[Path, Path]) -> Iterator[Engine]:
    engine = Engine.open(checkpoints[0], "cpu", config=EngineConfig(max_running=8))
    yield engine
    state = engine.scheduler.state
    assert not state.requests
    assert state.kv.available == engine.plan.num_pages
    assert state.kv.table.available == 8


def expected(model: PreTrainedModel, prompt: list[int], length: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False)
    return out[0, len(prompt) :].tolist()


def random_prompts(seed: int, count: int, longest: int = 60) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(1, 380) for _ in range(rng.randint(1, longest))] for _ in range(count)]


@settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    page_size=st.sampled_from([1, 4, 16]),
    max_running=st.integers(1, 6),
    budget=st.integers(6, 64),
    pool=st.integers(90, 400),
    caching=st.booleans(),
    policy=st.sampled_from(["fcfs", "priority", "longest_prefix"]),
    seed=st.integers(0, 3),
)
def test_tokens_do_not_depend_on_paging_chunking_sharing_or_retraction(
    checkpoints: tuple[Path, Path],
    reference: dict[str, PreTrainedModel],
    page_size: int,
    max_running: int,
    budget: int,
    pool: int,
    caching: bool,
    policy: str,
    seed: int,
) -> None:
    config = EngineConfig(
        page_size=page_size,
        max_running=max_running,
        max_batch_tokens=budget,
        kv_tokens=pool,
        prefix_caching=caching,
        policy=policy,
    )
    engine = Engine.open(checkpoints[0], "cpu", config=config)
    shared = random_prompts(99, 1, 40)[0]
    prompts = random_prompts(seed, 5)
    prompts += [shared + prompt[:9] for prompt in prompts[:3]]
    generations = engine.generate(prompts, GREEDY)
    for prompt, generation in zip(prompts, generations, strict=True):
        assert generation.tokens == expected(reference["v1"], prompt, 24)


def test_a_pool_too_small_for_all_retracts_and_loses_nothing(
    checkpoints: tuple[Path, Path], reference: dict[str, PreTrainedModel]
) -> None:
    config = EngineConfig(
        page_size=4, max_running=8, kv_tokens=120, prefix_caching=False, conservativeness=0.1
    )
    engine = Engine.open(checkpoints[0], "cpu", config=config)
    prompts = random_prompts(5, 8, 12)
    generations = engine.generate(prompts, max_new_tokens=40, temperature=0.0)
    assert sum(generation.retractions for generation in generations) > 0
    for prompt, generation in zip(prompts, generations, strict=True):
        assert generation.tokens == expected(reference["v1"], prompt, 40)


def test_a_shared_prefix_is_computed_once(engine: Engine) -> None:
    prompt = random_prompts(1, 1, 60)[0] + list(range(1, 65))
    (first,) = engine.generate([prompt], GREEDY)
    (second,) = engine.generate([prompt], GREEDY)
    assert first.cached_tokens == 0
    assert second.cached_tokens == (len(prompt) - 1) // 16 * 16
    assert second.tokens == first.tokens


def test_requests_in_flight_go_on_with_their_cache_when_weights_change_in_place(
    engine: Engine, reference: dict[str, PreTrainedModel], checkpoints: tuple[Path, Path]
) -> None:
    prompts = random_prompts(3, 3)
    generations = [engine.submit(prompt, GREEDY) for prompt in prompts]
    for _ in range(9):
        engine.step()
    engine.pause(PauseMode.IN_PLACE)
    update = engine.update_weights_from_disk(checkpoints[1], flush_cache=False, weight_version="v2")
    assert update.success
    assert update.outcome is UpdateOutcome.UPDATED
    engine.continue_generation()
    later = engine.generate(prompts, GREEDY)
    for prompt, generation in zip(prompts, later, strict=True):
        assert generation.cached_tokens == 0  # what the old weights computed is out of reach
        assert generation.tokens == expected(reference["v2"], prompt, 24)
    for prompt, generation in zip(prompts, generations, strict=True):
        before, after = generation.spans
        assert (before.version, before.start, before.end) == ("default", 0, 9)
        assert (after.version, after.start, after.end) == ("v2", 9, len(generation.tokens))
        assert generation.tokens[:9] == expected(reference["v1"], prompt, 9)


def test_an_update_that_is_not_paused_waits_for_running_requests(
    engine: Engine, reference: dict[str, PreTrainedModel], checkpoints: tuple[Path, Path]
) -> None:
    prompts = random_prompts(4, 2)
    running = [engine.submit(prompt, GREEDY) for prompt in prompts]
    engine.step()
    update = engine.update_weights_from_disk(checkpoints[1])
    assert update.outcome is UpdateOutcome.UPDATED
    assert all(generation.done for generation in running)
    for prompt, generation in zip(prompts, running, strict=True):
        assert generation.tokens == expected(reference["v1"], prompt, 24)
    (after,) = engine.generate(prompts[:1], GREEDY)
    assert after.tokens == expected(reference["v2"], prompts[0], 24)


def test_a_broken_checkpoint_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    prompt = random_prompts(6, 1)[0]
    (before,) = engine.generate([prompt], GREEDY)
    reply = engine.update_weights_from_disk(tmp_path / "missing")
    assert not reply.success
    assert reply.outcome is UpdateOutcome.UNCHANGED
    assert "missing" in reply.message
    (after,) = engine.generate([prompt], GREEDY)
    assert after.tokens == before.tokens


def test_retract_pauses_without_losing_a_token(engine: Engine, reference: dict[str, PreTrainedModel]) -> None:
    prompts = random_prompts(7, 4)
    generations = [engine.submit(prompt, GREEDY) for prompt in prompts]
    for _ in range(6):
        engine.step()
    reply = engine.pause(PauseMode.RETRACT)
    assert reply.retracted == 4
    assert engine.flush().success  # waiting requests hold nothing, and do not block a paused engine
    engine.continue_generation()
    while not all(generation.done for generation in generations):
        engine.step()
    for prompt, generation in zip(prompts, generations, strict=True):
        assert generation.retractions == 1
        assert generation.tokens == expected(reference["v1"], prompt, 24)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("stop", "named"),
    [
        (lambda engine: engine.pause(PauseMode.IN_PLACE), "continue_generation"),
        (lambda engine: engine.post(Pause("posted", PauseMode.IN_PLACE)), "generation is paused"),
        (lambda engine: engine.drain(), "generation is paused"),
        (lambda engine: engine.release_memory("kv_cache"), "kv_cache"),
        (lambda engine: engine.release_memory(), "weights"),
        (lambda engine: (engine.release_memory(), engine.resume_memory()), "have to be written first"),
    ],
    ids=["paused", "pause_posted", "drained", "kv_released", "all_released", "weights_missing"],
)
def test_generating_is_refused_and_not_waited_for_while_nothing_can_run(
    engine: Engine, stop: Callable[[Engine], object], named: str
) -> None:
    stop(engine)
    with pytest.raises(InvalidOperation, match=named):
        engine.generate([[1, 2]], GREEDY)
    with pytest.raises(InvalidOperation, match=named):
        next(engine.stream([1, 2], GREEDY))
    assert not engine.scheduler.state.requests


def test_what_is_submitted_while_paused_waits_and_blocks_no_flush(engine: Engine) -> None:
    engine.pause(PauseMode.IN_PLACE)
    queued = engine.submit([1, 2], GREEDY)
    engine.step()
    assert not queued.tokens
    assert engine.flush(timeout=0.05).success  # what waits holds nothing
    engine.continue_generation()
    while not queued.done:
        engine.step()


def test_generating_waits_for_what_is_on_its_way(
    engine: Engine, reference: dict[str, PreTrainedModel]
) -> None:
    prompt = random_prompts(7, 1)[0]
    engine.pause(PauseMode.IN_PLACE)
    engine.post(Continue("posted"))
    (generation,) = engine.generate([prompt], GREEDY)
    assert generation.tokens == expected(reference["v1"], prompt, 24)


def test_a_pause_by_another_thread_is_waited_out(
    engine: Engine, reference: dict[str, PreTrainedModel]
) -> None:
    prompt = random_prompts(7, 1)[0]
    texts = engine.stream(prompt, GREEDY)
    tokens = [*next(texts)[1]]
    engine.post(Pause("pause", PauseMode.RETRACT))

    def go_on() -> None:
        wait_until(lambda: engine.scheduler.state.paused, 60)
        engine.post(Continue("continue"))

    other = threading.Thread(target=go_on)
    other.start()
    for _, more in texts:
        tokens += more
    other.join(60)
    assert tokens == expected(reference["v1"], prompt, 24)


def test_who_leaves_a_stream_leaves_nothing_behind(engine: Engine) -> None:
    for _ in engine.stream([1, 2], GREEDY):
        break
    assert engine.flush().success
    assert not engine.scheduler.state.requests
    assert engine.blockers() == ()


@pytest.mark.parametrize("length", [1, 2])
def test_a_stream_gives_every_token_of_a_short_answer(engine: Engine, length: int) -> None:
    (whole,) = engine.generate([[1, 2]], max_new_tokens=length, temperature=0.0)
    parts = [*engine.stream([1, 2], SamplingParams(max_new_tokens=length, temperature=0.0))]
    assert [token for _, tokens in parts for token in tokens] == whole.tokens
    assert "".join(text for text, _ in parts) == whole.text


def test_one_prompt_that_can_never_run_takes_the_others_with_it(engine: Engine) -> None:
    with pytest.raises(InvalidRequest):
        engine.generate([[1, 2], [3, 4], [1] * 100_000], GREEDY)
    assert not engine.scheduler.state.requests
    with pytest.raises(InvalidRequest):
        engine.submit_samples([1] * 100_000, 3)
    assert not engine.scheduler.state.requests


def test_who_interrupts_a_generation_leaves_nothing_behind(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, passes = engine.runner.step, itertools.count(1)

    def interrupted(*arguments: object, **named: object) -> object:
        if next(passes) == 3:
            raise KeyboardInterrupt
        return step(*arguments, **named)

    monkeypatch.setattr(engine.runner, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([[1, 2], [3, 4]], GREEDY)
    monkeypatch.undo()
    assert not engine.scheduler.state.requests
    assert engine.flush().success


def test_sampling_depends_on_the_seed_and_not_on_the_batch(engine: Engine) -> None:
    prompts = random_prompts(8, 5)
    params = SamplingParams(max_new_tokens=16, temperature=1.0, top_p=0.9, seed=11)
    together = engine.generate(prompts, params)
    alone = [engine.generate([prompt], params)[0] for prompt in prompts]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    other = engine.generate(prompts, SamplingParams(max_new_tokens=16, temperature=1.0, top_p=0.9, seed=12))
    assert [one.tokens for one in other] != [one.tokens for one in together]


def test_a_token_that_follows_a_prompt_alone_is_drawn_as_well(engine: Engine) -> None:
    """Nobody else is sampled then: there are no parameters to begin with."""
    prompt = random_prompts(8, 1)
    params = [SamplingParams(max_new_tokens=1, temperature=3.0, seed=seed) for seed in range(12)]
    assert len({engine.generate(prompt, one)[0].tokens[0] for one in params}) > 2


def test_streamed_text_adds_up_to_the_whole(engine: Engine) -> None:
    prompt = "Pages of keys and values"
    (whole,) = engine.generate([prompt], GREEDY)
    pieces = list(engine.stream(prompt, GREEDY))
    assert "".join(text for text, _ in pieces) == whole.text
    assert [token for _, tokens in pieces for token in tokens] == whole.tokens
    assert len(pieces) > 5


def test_a_stop_string_ends_the_output_and_is_cut_from_it(engine: Engine) -> None:
    prompt = "Pages of keys and values"
    (whole,) = engine.generate([prompt], GREEDY)
    stop = whole.text[len(whole.text) // 2 :][:4]
    params = SamplingParams(max_new_tokens=24, temperature=0.0, stop=(stop,))
    (stopped,) = engine.generate([prompt], params)
    assert stopped.finish is not None
    assert stopped.finish.matched == stop
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert "".join(text for text, _ in engine.stream(prompt, params)) == stopped.text


def test_stop_tokens_and_ignored_eos(engine: Engine, reference: dict[str, PreTrainedModel]) -> None:
    prompt = random_prompts(9, 1)[0]
    (whole,) = engine.generate([prompt], GREEDY)
    token = whole.tokens[10]
    first = whole.tokens.index(token)
    (stopped,) = engine.generate([prompt], max_new_tokens=24, temperature=0.0, stop_token_ids=(token,))
    assert stopped.tokens == whole.tokens[: first + 1]
    assert stopped.finish is not None
    assert (stopped.finish.kind, stopped.finish.matched) == (FinishKind.STOP, token)
    (endless,) = engine.generate([prompt], max_new_tokens=200, temperature=0.0, ignore_eos=True)
    assert len(endless.tokens) == 200


def test_log_probabilities_come_with_each_token(engine: Engine) -> None:
    prompt = random_prompts(10, 1)[0]
    (plain, detailed) = (
        engine.generate([prompt], GREEDY)[0],
        engine.generate([prompt], max_new_tokens=24, temperature=0.0, logprobs=3)[0],
    )
    assert detailed.tokens == plain.tokens
    assert [one.token for one in detailed.logprobs] == detailed.tokens
    for one in detailed.logprobs:
        assert len(one.top) == 3
        assert one.top[0] == (one.token, pytest.approx(one.logprob))
        assert one.top[0][1] >= one.top[1][1] >= one.top[2][1]
    assert plain.logprobs == []


@pytest.mark.parametrize(
    ("prompt", "params", "complaint"),
    [
        ([], {}, "the prompt is empty"),
        ([1, 384], {}, "outside the vocabulary of 384"),
        ([-1], {}, "outside the vocabulary"),
        ([[1]], {}, "flat list"),
        (["a"], {}, "flat list"),
        ([2**40], {}, "do not fit"),
        ([1] * 600, {}, "takes fewer than 512"),
        ([1], {"max_new_tokens": -1}, "max_new_tokens"),
        ([1], {"temperature": -0.1}, "temperature"),
        ([1], {"temperature": float("nan")}, "temperature"),
        ([1], {"top_p": 0.0}, "top_p"),
        ([1], {"top_k": -1}, "top_k"),
        ([1], {"min_p": 1.5}, "min_p"),
        ([1], {"stop": ("",)}, "stop string"),
        ([1], {"stop_token_ids": (400,)}, "stop_token_ids"),
        ([1], {"logprobs": 385}, "logprobs"),
        ([1], {"temprature": 1.0}, "temprature"),
    ],
)
def test_an_impossible_request_is_refused_alone(
    engine: Engine, prompt: list[int], params: dict[str, float], complaint: str
) -> None:
    other = engine.submit([5, 6, 7], GREEDY)
    with pytest.raises(InvalidRequest, match=complaint):
        engine.generate([prompt], **params)
    while not other.done:
        engine.step()
    assert len(other.tokens) > 0


def test_a_request_id_in_use_is_refused(engine: Engine) -> None:
    generation = engine.submit([1, 2], GREEDY, request_id="a")
    with pytest.raises(InvalidRequest, match="'a' is already in flight"):
        engine.submit([1, 2], GREEDY, request_id="a")
    while not generation.done:
        engine.step()
    engine.submit([1, 2], GREEDY, request_id="a")
    assert engine.abort("a").aborted == 1


def test_output_ends_where_the_model_ends(engine: Engine) -> None:
    prompt = [3] * 500
    (generation,) = engine.generate([prompt], max_new_tokens=100, temperature=0.0, ignore_eos=True)
    assert len(generation.tokens) == 12
    assert generation.finish is not None
    assert generation.finish.kind is FinishKind.LENGTH


def test_too_little_memory_is_said_in_bytes(checkpoints: tuple[Path, Path]) -> None:
    with pytest.raises(NotEnoughMemory, match="bytes needed"):
        Engine.open(checkpoints[0], "cpu", config=EngineConfig(reserve_bytes=2**60))
    with pytest.raises(ConfigurationError, match="policy"):
        Engine.open(checkpoints[0], "cpu", config=EngineConfig(policy="fastest"))
