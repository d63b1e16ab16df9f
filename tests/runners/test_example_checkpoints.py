from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from devicekit.runners.checkpoint import ModelDirectory
from devicekit.runners.errors import UnsupportedModel
from examples.checkpoints import EXAMPLE_ARCHITECTURES, write_example_checkpoint


@pytest.mark.parametrize("architecture", EXAMPLE_ARCHITECTURES)
def test_examples_are_small_and_in_full_precision(example, architecture):
    root = example(architecture)
    assert sum(file.stat().st_size for file in root.iterdir()) < 5_000_000
    assert {tensor.dtype for tensor in ModelDirectory.open(root).stored_tensors().values()} == {"F32"}


def test_a_seed_always_gives_the_same_weights_and_another_gives_others(example, tmp_path):
    torch.manual_seed(11)
    undisturbed = torch.random.get_rng_state()
    again = load_file(write_example_checkpoint(tmp_path / "again", seed=1) / "model.safetensors")
    assert torch.equal(torch.random.get_rng_state(), undisturbed)
    first = load_file(example("llama") / "model.safetensors")
    second = load_file(example("llama", seed=2) / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], second["lm_head.weight"])
    assert (example("llama") / "config.json").read_text() == (
        example("llama", seed=2) / "config.json"
    ).read_text()


@pytest.mark.parametrize("text", ["The scheduler admits a request.", "naïve 设备 🙂\n\ttabs", "", " leading"])
def test_any_text_goes_in_and_comes_out(example, text):
    tokenizer = ModelDirectory.open(example("llama")).tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 < token < 384 for token in ids)


def test_common_words_take_fewer_tokens_than_bytes(example):
    tokenizer = ModelDirectory.open(example("llama")).tokenizer()
    text = "the scheduler and the next token"
    assert len(tokenizer.encode(text)) < len(text) * 0.7


def test_an_unknown_architecture_is_refused_with_what_there_is(tmp_path):
    with pytest.raises(UnsupportedModel, match="llama"):
        write_example_checkpoint(tmp_path, seed=1, architecture="perceptron")
