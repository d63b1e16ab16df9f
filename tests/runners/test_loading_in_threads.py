"""Models that several threads load at once are what each would be alone, and transformers is as it was."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from devicekit import get_device
from devicekit.runners import TransformersRunner, UnsupportedModel

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


@pytest.mark.parametrize("setting", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("word", ["int8", "bool", "complex64", "float8_e4m3fn", "unheard-of"])
def test_a_model_that_cannot_be_built_keeps_no_other_thread_waiting(
    word: str, setting: str, tied: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tied, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config.pop("dtype", None)
    (other / "config.json").write_text(json.dumps(config | {setting: word}))
    before = torch.get_default_dtype()
    with pytest.raises(UnsupportedModel, match=f"(?i){word}"):
        TransformersRunner.load(other, get_device("cpu"))
    assert torch.get_default_dtype() is before
    loading = threading.Thread(target=TransformersRunner.load, args=(tied, get_device("cpu")), daemon=True)
    loading.start()
    loading.join(60)
    assert not loading.is_alive()
