from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from devicekit.contract.errors import DeviceKitError
from devicekit.runners.checkpoint import ModelDirectory
from devicekit.runners.errors import (
    CheckpointMismatch,
    InvalidModelDirectory,
    MissingTokenizer,
    UnsupportedModel,
)
from devicekit.runners.probe import sketch_model
from devicekit.runners.transformers_runner import TransformersRunner
from tests.oracle import own_answers


@pytest.fixture
def directory(example, tmp_path) -> Path:
    """A sound checkpoint that the test may break."""
    return Path(shutil.copytree(example("llama"), tmp_path / "model"))


def edit_config(directory: Path, **changes: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refusal(kind: type[DeviceKitError], path: Path) -> str:
    with pytest.raises(kind) as error:
        ModelDirectory.open(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    assert error.value.path == str(path)
    return message


def test_a_missing_directory(tmp_path):
    assert "no model directory" in refusal(InvalidModelDirectory, tmp_path / "nowhere")


def test_a_name_on_the_hub_is_not_fetched():
    with pytest.raises(InvalidModelDirectory, match="no model directory at meta-llama"):
        ModelDirectory.open("meta-llama/Llama-3.2-1B")


def test_a_directory_without_config(directory):
    (directory / "config.json").unlink()
    assert "has no config.json" in refusal(InvalidModelDirectory, directory)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_config_that_says_nothing(directory, content):
    (directory / "config.json").write_text(content)
    assert "config.json" in refusal(InvalidModelDirectory, directory)


def test_a_config_of_an_unknown_model(directory):
    edit_config(directory, model_type="nonesuch")
    assert "nonesuch" in refusal(UnsupportedModel, directory)


def test_code_in_a_checkpoint_is_refused(directory):
    edit_config(directory, auto_map={"AutoModelForCausalLM": "evil.Model"})
    assert "never run" in refusal(UnsupportedModel, directory)


def test_only_pickled_weights_are_refused(directory):
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    message = refusal(InvalidModelDirectory, directory)
    assert "pytorch_model.bin" in message
    assert "safetensors" in message


def test_no_weights_at_all(directory):
    (directory / "model.safetensors").unlink()
    assert "has no weights" in refusal(InvalidModelDirectory, directory)


def test_a_shard_that_the_index_names_and_nobody_has(directory):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-1.safetensors" in refusal(InvalidModelDirectory, directory)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", 7])
def test_an_index_that_points_elsewhere(directory, name):
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "not a file beside it" in refusal(InvalidModelDirectory, directory)


def test_sharded_weights_load(directory, device, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    assert len(ModelDirectory.open(tmp_path / "sharded").weight_files) > 1
    runner = TransformersRunner.load(tmp_path / "sharded", device)
    weights = dict(runner.named_weights())
    assert all(torch.equal(weights[name], weight) for name, weight in model.named_parameters())


def test_a_truncated_weight_file(directory, device):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InvalidModelDirectory, match="cannot be read as safetensors"):
        TransformersRunner.load(directory, device)


def test_missing_weights_are_not_made_up(directory, device):
    file = directory / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file)
    with pytest.raises(InvalidModelDirectory, match=r"layers\.1\.mlp\.up_proj\.weight is missing"):
        TransformersRunner.load(directory, device)


def test_weights_of_another_shape_are_not_made_up(directory, device):
    edit_config(directory, intermediate_size=96)
    with pytest.raises(InvalidModelDirectory, match=r"mlp\.\w+\.weight is \(?\[?"):
        TransformersRunner.load(directory, device)


@pytest.mark.parametrize(
    ("model_type", "settings", "reason"),
    [
        ("t5", {}, "encoder-decoder"),
        ("bert", {"architectures": ["BertForMaskedLM"]}, "not a causal language model"),
        ("vit", {}, "not a causal language model"),
        ("minimax", {"num_hidden_layers": 2}, "linear_attention, which are not served"),
        ("rwkv", {}, "none of the models without attention that are served"),
        ("zaya", {"num_hidden_layers": 2}, "hybrid, which are not served"),
        (
            "deepseek_v32",
            {"num_hidden_layers": 2},
            "(indexed|deepseek_sparse)_attention, which are not served",
        ),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "quantised"),
    ],
)
def test_models_that_cannot_be_served_are_refused_before_loading(tmp_path, model_type, settings, reason):
    AutoConfig.for_model(model_type, **settings).save_pretrained(tmp_path)
    save_file({"unused": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModel, match=reason) as refused:
        sketch_model(ModelDirectory.open(tmp_path))
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


_SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_GIT = {**_SMALL, "vision_config": {**_SMALL, "image_size": 32, "patch_size": 16}}
_MOSHI = {
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "sliding_window": 8,
}


@pytest.mark.parametrize(
    ("model_type", "settings", "reason"),
    [
        ("bart", {"d_model": 32, "decoder_layers": 2, "is_encoder_decoder": False}, "position_ids"),
        ("openai-gpt", {"n_embd": 32, "n_layer": 2, "n_head": 4}, "2 layers .* calls .* 0 times"),
        ("git", _GIT, "cannot be replaced"),
        ("moshi", _MOSHI, r"sliding window of layers \[0, 1\]|that cannot be replaced"),
        ("bert", {"num_hidden_layers": 2, "is_decoder": False}, "attends to later tokens"),
    ],
)
def test_models_whose_attention_cannot_be_paged_are_refused(tmp_path, device, model_type, settings, reason):
    config = AutoConfig.for_model(model_type, vocab_size=64, **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=reason):
        TransformersRunner.load(tmp_path, device)


@pytest.mark.parametrize("model_type", ["codegen", "gptj"])
def test_a_model_with_attention_of_its_own_is_refused_or_says_what_it_says_alone(
    tmp_path, device, driver, model_type
):
    """Their attention can be replaced since transformers 5.24."""
    settings = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8}
    config = AutoConfig.for_model(model_type, vocab_size=64, bos_token_id=1, eos_token_id=2, **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    said = None
    try:
        runner = TransformersRunner.load(tmp_path, device)
    except UnsupportedModel as refused:
        said = str(refused)
    if said is not None:
        assert "attention that can be replaced 0 times" in said or "attention that cannot be replaced" in said
        return
    prompts = [[3, 4, 5], [6] * 9, [7, 8]]
    assert driver(runner).generate(prompts, 8) == own_answers(tmp_path, prompts, 8)


def test_a_missing_tokenizer_is_found_when_text_is_asked_for(directory):
    for file in directory.glob("tokenizer*"):
        file.unlink()
    opened = ModelDirectory.open(directory)
    with pytest.raises(MissingTokenizer, match="has no tokenizer"):
        opened.tokenizer()


def test_a_damaged_tokenizer_gets_one_line(directory):
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(MissingTokenizer, match="cannot be loaded") as error:
        ModelDirectory.open(directory).tokenizer()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("config.json", InvalidModelDirectory),
        ("generation_config.json", InvalidModelDirectory),
        ("model.safetensors", InvalidModelDirectory),
        ("tokenizer.json", MissingTokenizer),
    ],
)
def test_no_file_is_read_that_lies_outside_of_what_is_allowed(directory, tmp_path, name, kind):
    def read(within: tuple[str, ...]) -> None:
        opened = ModelDirectory.open(directory, within)
        opened.stored_tensors()
        _ = opened.limits
        opened.tokenizer()

    (directory / name).touch()
    if name == "generation_config.json":
        (directory / name).write_text("{}")
    (directory / name).rename(tmp_path / name)
    (directory / name).symlink_to(tmp_path / name)
    with pytest.raises(kind, match=f"{name} is a link to {tmp_path / name}, outside"):
        read((str(directory),))
    read((str(tmp_path),))


def test_the_generation_config_knows_more_end_tokens(directory):
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7]}))
    assert ModelDirectory.open(directory).limits.eos_token_ids == {0, 7}


def test_positions_end_where_embeddings_begin_to_depend_on_the_batch(directory):
    assert ModelDirectory.open(directory).limits.max_positions == 512
    scaled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1e4}
    edit_config(directory, rope_parameters=scaled)
    assert ModelDirectory.open(directory).limits.max_positions == 512
    longrope = {**scaled, "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    edit_config(directory, rope_parameters=longrope)
    assert ModelDirectory.open(directory).limits.max_positions == 128


def test_every_error_survives_a_process_boundary():
    error = CheckpointMismatch("no", path="/models/a", problems=("x is missing",))
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.path, copy.problems) == ("no", "/models/a", ("x is missing",))


def test_a_damaged_generation_config_is_named(directory):
    (directory / "generation_config.json").write_text("{")
    with pytest.raises(InvalidModelDirectory, match=r"generation_config\.json cannot be read"):
        _ = ModelDirectory.open(directory).limits
