"""A Hugging Face model runs on the device and says what it says on the host."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from devicekit.engine import Engine, EngineConfig
from devicekit.registry import unregister_backend
from devicekit.scheduling.request import SamplingParams
from devicekit.testing.sim_backend import register
from examples.checkpoints import write_example_checkpoint

pytestmark = pytest.mark.usefixtures("machine")


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_identical_to_the_hosts(llama: LlamaForCausalLM, attention: str) -> None:
    llama.set_attn_implementation(attention)
    tokens = torch.randint(1, 128, (2, 9))
    with torch.no_grad():
        expected = llama(tokens).logits
        llama.to("sim:1")
        assert torch.equal(llama(tokens.to("sim:1")).logits.cpu(), expected)
    assert torch.sim.memory_allocated(0) == 0
    assert torch.sim.memory_allocated(1) > sum(p.nbytes for p in llama.parameters())


def test_generation_is_identical_to_the_hosts(llama: LlamaForCausalLM) -> None:
    tokens = torch.randint(1, 128, (2, 9))
    mask = torch.ones_like(tokens)
    expected = llama.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False)
    made = llama.to("sim").generate(
        tokens.to("sim"), attention_mask=mask.to("sim"), max_new_tokens=6, do_sample=False
    )
    assert torch.equal(made.cpu(), expected)


def test_a_model_that_does_not_fit_fails_as_out_of_memory(llama: LlamaForCausalLM) -> None:
    torch.sim.set_per_process_memory_fraction(0.0)
    with pytest.raises(torch.OutOfMemoryError):
        llama.to("sim")


def test_the_engine_serves_from_the_device_what_the_model_says_on_the_host(tmp_path: Path) -> None:
    write_example_checkpoint(tmp_path, seed=0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompts = [[1, 2, 3, 4], [9] * 20, [5]]
    register()
    try:
        engine = Engine.open(tmp_path, "sim:1", config=EngineConfig(max_running=2))
        results = engine.generate(prompts, SamplingParams(max_new_tokens=12, temperature=0.0))
    finally:
        unregister_backend("sim")
    for prompt, result in zip(prompts, results, strict=True):
        tokens = torch.tensor([prompt])
        expected = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=12, do_sample=False
        )
        assert list(result.tokens) == expected[0, len(prompt) :].tolist()
    assert torch.sim.memory_allocated(0) == 0
    assert torch.sim.memory_allocated(1) > 0
