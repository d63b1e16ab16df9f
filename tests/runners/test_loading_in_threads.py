"""Models that several threads load at once are what each would be alone, and transformers is as it was."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from devicekit import get_device
from devicekit.runners import TransformersRunner

_THREADS = 4


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied")
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_models_loaded_at_once_are_whole_and_so_is_one_loaded_afterwards(tied: Path) -> None:
    before = torch.get_default_dtype()
    together = threading.Barrier(_THREADS)

    def load(_: int) -> None:
        together.wait()
        for _ in range(4):
            TransformersRunner.load(tied, get_device("cpu"))

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(load, range(_THREADS)))
    assert torch.get_default_dtype() is before
    model = AutoModelForCausalLM.from_pretrained(tied)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
