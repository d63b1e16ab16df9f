"""A Hugging Face model runs on the device and says what it says on the host."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

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
