"""Weights and memory of a real model: updated by tensor, released, resumed, and cached on the host."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from devicekit.engine import Engine, EngineConfig
from devicekit.scheduling.messages import Refusal, UpdateOutcome
from devicekit.weights.operations import ChecksumReply, ChecksumWeights, UpdateWeightsFromTensor
from examples.checkpoints import write_example_checkpoint

PROMPT = list(range(5, 60))


def reference(model: PreTrainedModel, prompt: list[int] = PROMPT) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    return out[0, len(prompt) :].tolist()


def run(engine: Engine, prompt: list[int] = PROMPT) -> list[int]:
    (generation,) = engine.generate([prompt], max_new_tokens=8, temperature=0)
    return generation.tokens


@pytest.fixture
def new_weights(checkpoints: tuple[Path, Path]) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(checkpoints[1]).eval()


def test_named_parameters_of_a_trainer_replace_the_weights(
    checkpoints: tuple[Path, Path], new_weights: PreTrainedModel
) -> None:
    engine = Engine.open(checkpoints[0], "cpu", config=EngineConfig(max_running=4))
    tensors = dict(new_weights.named_parameters())
    reply = engine.update_weights(UpdateWeightsFromTensor("u", tensors=tensors))
    assert (reply.outcome, reply.tensors) == (UpdateOutcome.UPDATED, len(tensors))
    assert run(engine) == reference(new_weights)


def test_sleeping_and_waking_in_two_stages(
    checkpoints: tuple[Path, Path], new_weights: PreTrainedModel
) -> None:
    engine = Engine.open(checkpoints[0], "cpu", config=EngineConfig(max_running=4))
    run(engine)
    engine.pause()
    released = engine.release_memory()
    sizes = {one.tag: one.bytes for one in released.regions}
    assert sizes["weights"] == sum(one.nbytes for one in new_weights.parameters())
    assert sizes["kv_cache"] == engine.plan.pool_bytes
    engine.resume_memory("weights")
    engine.update_weights(UpdateWeightsFromTensor("u", tensors=dict(new_weights.named_parameters())))
    engine.resume_memory("kv_cache")
    engine.continue_generation()
    assert run(engine) == reference(new_weights)


def test_waking_up_with_weights_from_disk(
    checkpoints: tuple[Path, Path], new_weights: PreTrainedModel
) -> None:
    engine = Engine.open(checkpoints[0], "cpu", config=EngineConfig(max_running=4))
    engine.release_memory()
    assert engine.update_weights_from_disk(checkpoints[1]).refusal is Refusal.CONFLICT
    assert engine.resume_memory().untrusted > 0
    assert engine.update_weights_from_disk(checkpoints[1]).success
    assert run(engine) == reference(new_weights)


def test_a_backup_brings_the_same_weights_back(checkpoints: tuple[Path, Path]) -> None:
    engine = Engine.open(checkpoints[0], "cpu", config=EngineConfig(max_running=4))
    before = engine.perform(ChecksumWeights("a"), ChecksumReply)
    tokens = run(engine)
    engine.release_memory(backup_weights=True)
    engine.resume_memory()
    assert engine.perform(ChecksumWeights("b"), ChecksumReply).tensors == before.tensors
    assert run(engine) == tokens


def test_a_tied_weight_may_be_sent_under_either_name(tmp_path: Path) -> None:
    path = write_example_checkpoint(tmp_path / "qwen2", seed=1, architecture="qwen2")
    engine = Engine.open(path, "cpu", config=EngineConfig(max_running=4))
    weight = torch.randn(384, 64)
    reply = engine.update_weights(UpdateWeightsFromTensor("u", tensors={"lm_head.weight": weight}))
    assert reply.success, reply.message
    assert torch.equal(engine.runner.model.get_input_embeddings().weight, weight)


def test_the_host_tier_changes_no_token(checkpoints: tuple[Path, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints[0]).eval()
    config = EngineConfig(max_running=2, kv_tokens=96, host_kv_tokens=512)
    engine = Engine.open(checkpoints[0], "cpu", config=config)
    others = [list(range(first, first + 70)) for first in (100, 200)]
    assert run(engine) == reference(model)
    for other in others:
        assert run(engine, other) == reference(model, other)
    (again,) = engine.generate([PROMPT], max_new_tokens=8, temperature=0)
    assert again.tokens == reference(model)
    assert again.cached_tokens == 48


def test_pools_of_layers_with_and_without_windows_sleep_and_wake_together(tmp_path: Path) -> None:
    path = write_example_checkpoint(tmp_path / "gemma2", seed=1, architecture="gemma2")
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    config = EngineConfig(max_running=2, max_batch_tokens=16, kv_tokens=512, window_kv_tokens=96)
    engine = Engine.open(path, "cpu", config=config)
    assert engine.plan.window_pages == 6
    assert run(engine) == reference(model)
    released = engine.release_memory("kv_cache")
    assert {one.tag: one.bytes for one in released.regions} == {"kv_cache": engine.plan.pool_bytes}
    engine.resume_memory("kv_cache")
    assert run(engine) == reference(model)
    windows = engine.audit().window_pages
    assert windows is not None
    assert windows.balanced


def test_snapshots_of_states_are_counted_forgotten_with_their_memory_and_made_again(tmp_path: Path) -> None:
    path = write_example_checkpoint(tmp_path / "lfm2", seed=1, architecture="lfm2")
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    engine = Engine.open(path, "cpu", config=EngineConfig(max_running=2, kv_tokens=256, state_snapshots=5))
    assert engine.states is not None
    layout = engine.states.layout
    assert engine.plan.reserve_bytes == (2 * 3 + 5) * layout.bytes_per_slot
    assert engine.states.nbytes == (1 + 2 + 5) * layout.bytes_per_slot

    def cached() -> int:
        (generation,) = engine.generate([PROMPT], max_new_tokens=8, temperature=0)
        assert generation.tokens == reference(model)
        return generation.cached_tokens

    assert (cached(), cached()) == (0, 48)
    released = engine.release_memory("kv_cache")
    assert released.regions[0].bytes == engine.plan.pool_bytes + engine.states.nbytes
    engine.resume_memory("kv_cache")
    assert (cached(), cached()) == (0, 48)
