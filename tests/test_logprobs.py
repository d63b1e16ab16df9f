"""Log-probabilities are those of a plain forward pass, of the distribution that they are said to be of."""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from devicekit.engine import Engine, EngineConfig
from devicekit.runners.errors import InvalidModelDirectory
from devicekit.scheduling import scoring
from devicekit.scheduling.errors import InvalidRequest
from devicekit.scheduling.request import FinishKind, Request, SamplingParams
from devicekit.weights.operations import UpdateWeightsFromTensor
from examples.checkpoints import write_example_checkpoint

CLOSE = 1e-4


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_example_checkpoint(tmp_path_factory.mktemp("scored"), seed=3)


@pytest.fixture(scope="module")
def model(path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path).eval()


@pytest.fixture(scope="module")
def engine(path: Path) -> Engine:
    torch.set_num_threads(1)
    return Engine.open(
        path, "cpu", config=EngineConfig(kv_tokens=2048, page_size=4, max_batch_tokens=24, max_running=4)
    )


def plain(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """Logits at every position."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


def prompts(seed: int, count: int) -> list[list[int]]:
    rng = random.Random(seed)
    shared = [rng.randrange(384) for _ in range(12)]
    return [
        shared[: rng.randint(0, 12)] + [rng.randrange(384) for _ in range(rng.randint(2, 40))]
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_prompts_are_scored_as_by_one_pass_however_they_are_cut_and_cached(
    engine: Engine, model: PreTrainedModel, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(engine.scheduler._planner, "_scores_at_once", rng.choice([1, 3, 7, 1000]))
    ids = (5, 200, 11)
    asked = []
    for prompt in prompts(seed, 8):
        params = SamplingParams(
            max_new_tokens=rng.choice([0, 3]),
            temperature=0,
            logprobs=rng.randint(0, 4),
            logprob_ids=ids[: rng.randint(0, 3)],
            prompt_logprobs=rng.randrange(len(prompt)),
            ignore_eos=True,
        )
        asked.append((prompt, params, engine.submit(prompt, params)))
    while not all(one.done for _, _, one in asked):
        engine.step()
    for prompt, params, found in asked:
        right = torch.log_softmax(plain(model, prompt), -1)
        start = params.prompt_logprobs or 0
        assert [one.token for one in found.prompt_logprobs] == prompt[start + 1 :]
        for position, one in enumerate(found.prompt_logprobs, start):
            assert one.logprob == pytest.approx(float(right[position, one.token]), abs=CLOSE)
            best = right[position].topk(params.logprobs)
            assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=CLOSE)
            assert one.picked == tuple(
                (token, pytest.approx(float(right[position, token]), abs=CLOSE))
                for token in params.logprob_ids
            )
        assert len(found.tokens) == len(found.logprobs) == params.max_new_tokens
        assert found.cached_tokens <= start


def test_no_pass_holds_more_logits_of_prompts_than_is_allowed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "SCORED_VALUES", 384 * 5)
    engine = Engine.open(path, "cpu", config=EngineConfig(kv_tokens=2048, max_batch_tokens=64))
    most, step, shortest = [], engine.runner.step, []

    def watch(batch: object) -> object:
        most.append(0 if batch.scored is None else len(batch.scored.at))
        shortest.append(np.diff(batch.query_start_loc).min())
        return step(batch)

    monkeypatch.setattr(engine.runner, "step", watch)
    params = SamplingParams(max_new_tokens=0, temperature=0, logprobs=0, prompt_logprobs=0)
    found = [engine.submit([*range(one, one + 40)], params) for one in (1, 2, 3)]
    while not all(one.done for one in found):
        engine.step()
    assert max(most) == 5
    assert sum(most) == 3 * 39
    assert min(shortest) > 0, "a request takes part in a pass that computes nothing of it"
    assert all(one.finish.kind is FinishKind.LENGTH and not one.tokens for one in found)


@pytest.mark.parametrize("raw", [False, True])
def test_output_is_scored_by_the_distribution_it_was_drawn_from_or_the_models_own(
    engine: Engine, model: PreTrainedModel, raw: bool
) -> None:
    prompt = [7, 8, 9, 10]
    params = SamplingParams(
        max_new_tokens=6,
        temperature=0.5,
        seed=4,
        logit_bias=((40, 5.0),),
        presence_penalty=1.0,
        logprobs=3,
        logprob_ids=(40,),
        raw_logprobs=raw,
        ignore_eos=True,
    )
    (found,) = engine.generate([prompt], params)
    for at, one in enumerate(found.logprobs):
        logits = plain(model, prompt + found.tokens[:at])[-1].double()
        if not raw:
            logits[40] += 5.0
            for token in set(found.tokens[:at]):
                logits[token] -= 1.0
            logits /= 0.5
        right = torch.log_softmax(logits, -1)
        assert one.logprob == pytest.approx(float(right[found.tokens[at]]), abs=2e-4)
        assert one.picked[0] == (40, pytest.approx(float(right[40]), abs=2e-4))
        assert [value for _, value in one.top] == pytest.approx(right.topk(3).values.tolist(), abs=2e-4)


def test_a_retracted_prompt_is_scored_once(path: Path, model: PreTrainedModel) -> None:
    engine = Engine.open(
        path, "cpu", config=EngineConfig(kv_tokens=96, page_size=4, max_running=4, conservativeness=0)
    )
    params = SamplingParams(max_new_tokens=30, temperature=0, logprobs=0, prompt_logprobs=0, ignore_eos=True)
    asked = [
        (prompt, engine.submit(prompt, params))
        for prompt in ([*range(1, 21)], [*range(30, 50)], [*range(60, 80)])
    ]
    while not all(one.done for _, one in asked):
        engine.step()
    assert sum(one.retractions for _, one in asked)
    for prompt, one in asked:
        right = torch.log_softmax(plain(model, prompt), -1)
        assert [entry.token for entry in one.prompt_logprobs] == prompt[1:]
        assert [entry.logprob for entry in one.prompt_logprobs] == pytest.approx(
            [float(right[at, token]) for at, token in enumerate(prompt[1:])], abs=CLOSE
        )
        assert len(one.logprobs) == len(one.tokens) == 30


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        (SamplingParams(logprobs=0, prompt_logprobs=3), "it has 3"),
        (SamplingParams(prompt_logprobs=0), "need logprobs"),
        (SamplingParams(logprobs=0, logprob_ids=(384,)), "outside the vocabulary"),
        (SamplingParams(logprobs=0, prompt_logprobs=-1), "0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(engine: Engine, params: SamplingParams, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        engine.submit([1, 2, 3], params)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("policy", ["refuse", "mark"])
def test_logits_that_are_no_numbers_give_no_numbers(path: Path, value: float, policy: str) -> None:
    engine = Engine.open(path, "cpu", config=EngineConfig(kv_tokens=512, invalid_logits=policy))
    with torch.no_grad():
        engine.runner.model.lm_head.weight[:, 0] = value
    params = SamplingParams(max_new_tokens=3, temperature=0, logprobs=1, ignore_eos=True)
    found = [engine.submit(prompt, params) for prompt in ([1, 2], [3, 4, 5])]
    while not all(one.done for one in found):
        engine.step()
    assert engine.scheduler.state.requests.invalid_logits
    for one in found:
        if policy == "refuse":
            assert one.finish.kind is FinishKind.ERROR
            assert "NaN or infinite" in one.finish.message
            assert (one.tokens, one.logprobs) == ([], [])
        else:
            assert one.finish.kind is FinishKind.LENGTH
            assert one.invalid_logits == 3
            assert all(math.isnan(entry.logprob) for entry in one.logprobs)
    assert engine.audit().balanced


def test_a_request_ends_alone_when_its_logits_turn_bad(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = engine.runner.step, 0

    def spoil(batch: object) -> object:
        nonlocal calls
        calls += 1
        output = step(batch)
        if calls == 4:
            output.tokens[0] = -1 - output.tokens[0]
            output.invalid = True
        return output

    params = SamplingParams(max_new_tokens=8, temperature=0, ignore_eos=True, stop=("\x00",))
    right = [one.tokens for one in engine.generate([[1, 2], [3, 4, 5]], params)]
    monkeypatch.setattr(engine.runner, "step", spoil)
    bad, good = engine.generate([[1, 2], [3, 4, 5]], params)
    assert bad.finish.kind is FinishKind.ERROR
    assert bad.tokens == right[0][: len(bad.tokens)]
    assert len(bad.tokens) == 3
    assert good.tokens == right[1]
    assert engine.audit().balanced


def test_weights_that_are_no_numbers_can_be_kept_out(path: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(path, tmp_path / "bad")
    tensors = load_file(bad / "model.safetensors")
    name = next(iter(tensors))
    tensors[name].view(-1)[3] = math.nan
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    strict = EngineConfig(kv_tokens=256, refuse_nonfinite_weights=True)
    with pytest.raises(InvalidModelDirectory, match="NaN or infinite"):
        Engine.open(bad, "cpu", config=strict)
    engine = Engine.open(path, "cpu", config=strict)
    (before,) = engine.generate([[1, 2, 3]], max_new_tokens=4, temperature=0)
    reply = engine.update_weights_from_disk(bad)
    assert not reply.success
    assert "NaN or infinite" in reply.message
    operation = UpdateWeightsFromTensor("t", tensors={name: tensors[name]})
    assert "Nothing was written" in engine.update_weights(operation).message
    (after,) = engine.generate([[1, 2, 3]], max_new_tokens=4, temperature=0)
    assert after.tokens == before.tokens
    assert engine.update_weights_from_disk(path).success


def test_each_output_of_a_stream_has_the_scores_of_its_own_tokens(engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=6, temperature=0.0, ignore_eos=True, logprobs=1)
    request = Request("streamed", np.array([1, 2, 3], np.int32), params, stream=True)
    engine.scheduler.add(request)
    tokens: list[int] = []
    scored: list[int] = []
    for _ in range(50):
        for output in engine.scheduler.step().outputs:
            assert len(output.logprobs) == len(output.tokens)
            tokens += output.tokens
            scored += [one.token for one in output.logprobs]
        if len(tokens) == 6:
            break
    assert len(set(tokens)) > 1
    assert scored == tokens
