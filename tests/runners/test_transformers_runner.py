from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from devicekit.memory.kv import KVLayout, KVPool
from devicekit.runners import plan
from devicekit.runners.checkpoint import ModelDirectory
from devicekit.runners.errors import ModelError
from devicekit.runners.probe import sketch_model
from devicekit.runners.transformers_runner import TransformersRunner
from examples.checkpoints import EXAMPLE_ARCHITECTURES

PROMPTS = [[5, 9, 300, 44, 7], list(range(40, 75)), [1], list(range(300, 200, -9))]


def test_limits_and_layout_are_the_models(example, device):
    runner = TransformersRunner.load(example("gemma2"), device)
    assert runner.limits.vocab_size == 384
    assert runner.limits.max_positions == 512
    assert runner.limits.eos_token_ids == {0}
    assert runner.layout == KVLayout(2, 2, 32, 32, torch.float32, windows=(8, None))


@pytest.mark.parametrize("architecture", EXAMPLE_ARCHITECTURES)
def test_a_sketch_foresees_what_loading_finds(example, device, architecture):
    runner = TransformersRunner.load(example(architecture), device)
    sketch = sketch_model(runner.directory)
    assert sketch.layout == runner.layout
    assert sketch.states == runner.states
    assert sketch.weight_bytes == sum(weight.nbytes for _, weight in runner.named_weights())


@pytest.mark.parametrize("architecture", ["llama", "lfm2"])
def test_a_config_whose_numbers_make_no_sense_is_refused_by_name_before_weights_are_read(
    example, tmp_path, architecture
):
    shutil.copytree(example(architecture), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    refused = []
    for name, value in config.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        for wrong in (0, -1, 1.5, "x", None):
            (tmp_path / "config.json").write_text(json.dumps({**config, name: wrong}))
            try:
                sketch_model(ModelDirectory.open(tmp_path))
            except ModelError as error:
                refused.append(str(error))
    assert len(refused) > 10
    assert all(str(tmp_path) in one for one in refused)


def test_long_prompts_are_cut_without_changing_a_token(example, driver, monkeypatch):
    whole = {a: driver(example(a)).generate(PROMPTS, 10) for a in ("llama", "mistral", "gemma2")}
    monkeypatch.setattr(plan, "MAX_CELLS", 30)
    for architecture, tokens in whole.items():
        assert driver(example(architecture), seed=9).generate(PROMPTS, 10) == tokens


def test_log_probabilities_are_the_models_whatever_the_chunks(example, driver):
    path = example("qwen3")
    drive = driver(path)
    sequence = drive.add(PROMPTS[1])
    assert len(drive.step([(sequence, 20)], top_logprobs=4).tokens) == 0
    output = drive.step([(drive.add(PROMPTS[0]), 5), (sequence, 15)], top_logprobs=4)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(path)(torch.tensor([PROMPTS[1]])).logits[0, -1]
    exact = torch.log_softmax(logits, -1).topk(4)
    np.testing.assert_array_equal(output.logprobs.top_ids[1], exact.indices)
    np.testing.assert_allclose(output.logprobs.top_values[1], exact.values, atol=1e-5)
    np.testing.assert_allclose(output.logprobs.chosen[1], exact.values[0], atol=1e-5)


def test_positions_in_the_middle_may_be_wanted_too(example, driver):
    path = example("llama")
    drive = driver(path)
    batch = drive.batch([(drive.add(PROMPTS[1]), 35)])
    batch.logits_indices = np.arange(35, dtype=np.int32)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(path)(torch.tensor([PROMPTS[1]])).logits[0]
    assert drive.runner.step(batch).tokens.tolist() == logits.argmax(-1).tolist()


def test_sampled_tokens_depend_on_the_seed_and_not_on_the_company(example, driver):
    path = example("llama")
    reference = driver(path).generate(PROMPTS, 15, temperature=0.9, seed=123)
    assert driver(path, page_size=1, seed=5).generate(PROMPTS, 15, temperature=0.9, seed=123) == reference
    assert driver(path).generate(PROMPTS, 15, temperature=0.9, seed=124) != reference
    assert driver(path).generate(PROMPTS, 15) != reference


def test_a_poisoned_request_does_not_reach_its_neighbours(example, driver):
    """Keys and values that are not numbers stay with the request that made them, also on a shared page's tail."""
    path = example("gemma2")
    clean = driver(path).generate(PROMPTS[:1], 12)
    drive = driver(path, page_size=16)
    victim, poisoned = drive.add(PROMPTS[0]), drive.add(PROMPTS[1])
    drive.step([(poisoned, 35)])
    pages = torch.from_numpy(drive.table.pages[poisoned.row, :3].astype(np.int64))
    for layer in range(drive.runner.layout.num_layers):
        drive.pool.key(layer).view(-1, 16, 2, 32)[pages] = float("nan")
        drive.pool.value(layer).view(-1, 16, 2, 32)[pages] = float("inf")
    drive.step([(poisoned, 1), (victim, 5)])
    for _ in range(11):
        output = drive.step([(victim, 1), (poisoned, 1)])
        assert output.invalid
        assert [token < 0 for token in output.tokens.tolist()] == [False, True]
    assert victim.generated == clean[0]


def test_half_precision_loads_and_keeps_its_keys_in_half(example, driver, device):
    runner = TransformersRunner.load(example("llama"), device, dtype=torch.bfloat16)
    assert runner.layout.dtype == torch.bfloat16
    assert all(weight.dtype == torch.bfloat16 for _, weight in runner.named_weights())
    assert len(driver(runner).generate(PROMPTS, 4)[0]) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_the_pool_may_be_narrower_than_the_model(example, device, driver, dtype):
    """Log-probabilities move a little, as far as rounding goes, and no further."""
    runner = TransformersRunner.load(example("llama"), device)
    wide = driver(runner)
    exact = wide.step([(wide.add(PROMPTS[1]), 35)], top_logprobs=384).logprobs
    layout = KVLayout(2, 2, 16, 16, dtype)
    runner.bind(KVPool(device, layout, 256, 4))
    sequence = wide.add(PROMPTS[1])
    found = runner.step(wide.batch([(sequence, 35)], top_logprobs=384)).logprobs
    a, b = np.empty(384), np.empty(384)
    a[exact.top_ids[0]], b[found.top_ids[0]] = exact.top_values[0], found.top_values[0]
    assert np.abs(a - b).max() > 0
    assert np.corrcoef(a, b)[0, 1] > 0.97


def test_a_pool_of_another_shape_is_refused(example, device):
    runner = TransformersRunner.load(example("llama"), device)
    with pytest.raises(ValueError, match="does not fit"):
        runner.bind(KVPool(device, KVLayout(2, 2, 8, 16, torch.float32), 4, 4))


def test_a_step_without_a_pool_says_what_to_do(example, device, driver):
    batch = driver(example("llama"))
    ready = batch.batch([(batch.add([1, 2]), 2)])
    with pytest.raises(RuntimeError, match="bind a KV pool"):
        TransformersRunner.load(example("llama"), device).step(ready)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_named_weights_name_each_tensor_of_the_checkpoint_once(example, device, architecture):
    runner = TransformersRunner.load(example(architecture), device)
    weights = dict(runner.named_weights())
    stored = runner.directory.stored_tensors()
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == {
        name: tensor.shape for name, tensor in stored.items()
    }
    assert len({weight.data_ptr() for weight in weights.values()}) == len(weights)
