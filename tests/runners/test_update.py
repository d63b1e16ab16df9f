from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from devicekit.runners.errors import CheckpointMismatch, InvalidModelDirectory, UnsupportedModel
from devicekit.runners.transformers_runner import TransformersRunner
from examples.checkpoints import EXAMPLE_ARCHITECTURES

PROMPTS = [[5, 9, 300, 44, 7], list(range(40, 60))]


@pytest.fixture
def second(example, tmp_path) -> Path:
    """A second version of the llama weights that the test may break."""
    return Path(shutil.copytree(example("llama", seed=2), tmp_path / "second"))


def rewrite(directory: Path, change) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")


@pytest.mark.parametrize("architecture", EXAMPLE_ARCHITECTURES)
def test_an_update_equals_loading_the_new_weights(example, device, driver, architecture):
    runner = TransformersRunner.load(example(architecture), device)
    addresses = {name: weight.data_ptr() for name, weight in runner.named_weights()}
    old = driver(runner).generate(PROMPTS, 8)
    record = runner.update_from_disk(example(architecture, seed=2))
    fresh = TransformersRunner.load(example(architecture, seed=2), device)
    assert driver(runner).generate(PROMPTS, 8) == driver(fresh).generate(PROMPTS, 8) != old
    weights = dict(runner.named_weights())
    assert {name: weight.data_ptr() for name, weight in weights.items()} == addresses
    assert record.tensors == len(weights)
    assert record.bytes == sum(weight.nbytes for weight in weights.values())
    runner.update_from_disk(example(architecture))
    assert driver(runner).generate(PROMPTS, 8) == old


def test_requests_in_flight_go_on_with_the_new_weights(example, driver):
    drive = driver(example("llama"))
    sequence = drive.add(PROMPTS[1])
    drive.step([(sequence, 20)])
    before = sequence.generated
    drive.runner.update_from_disk(example("llama", seed=2))
    for _ in range(5):
        drive.step([(sequence, 1)])
    assert sequence.generated[:1] == before
    assert len(sequence.generated) == 6


def _drop(weights):
    del weights["model.norm.weight"]


def _add(weights):
    weights["model.extra"] = torch.zeros(1)


def _reshape(weights):
    weights["lm_head.weight"] = weights["lm_head.weight"][:-1].contiguous()


def _transpose(weights):
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"].T.contiguous()


def _cast(weights):
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.bfloat16)


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (_drop, "model.norm.weight is missing"),
        (_add, "model.extra is unknown"),
        (_reshape, r"lm_head.weight is F32 \[383, 64\], not F32 \[384, 64\]"),
        (_transpose, "up_proj.weight is F32"),
        (_cast, r"model.norm.weight is BF16 \[64\], not F32 \[64\]"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(example, device, second, damage, names):
    runner = TransformersRunner.load(example("llama"), device)
    old = {name: weight.clone() for name, weight in runner.named_weights()}
    rewrite(second, damage)
    with pytest.raises(CheckpointMismatch, match=names) as refusal:
        runner.update_from_disk(second)
    assert len(refusal.value.problems) == 1
    assert all(torch.equal(weight, old[name]) for name, weight in runner.named_weights())
    assert runner.directory.path == example("llama")


def test_a_half_written_file_changes_nothing(example, device, second):
    runner = TransformersRunner.load(example("llama"), device)
    old = {name: weight.clone() for name, weight in runner.named_weights()}
    file = second / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InvalidModelDirectory):
        runner.update_from_disk(second)
    assert all(torch.equal(weight, old[name]) for name, weight in runner.named_weights())


def test_another_architecture_is_refused(example, device):
    runner = TransformersRunner.load(example("llama"), device)
    with pytest.raises(CheckpointMismatch, match="config model_type is 'qwen3', not 'llama'"):
        runner.update_from_disk(example("qwen3"))


def test_a_config_that_computes_something_else_is_refused(example, device, second):
    runner = TransformersRunner.load(example("llama"), device)
    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5, "use_cache": False}))
    with pytest.raises(CheckpointMismatch, match=r"config rms_norm_eps is 0\.5"):
        runner.update_from_disk(second)


def test_a_missing_directory_is_refused(example, device, tmp_path):
    with pytest.raises(InvalidModelDirectory, match="no model directory"):
        TransformersRunner.load(example("llama"), device).update_from_disk(tmp_path / "nowhere")


def test_the_directory_it_was_loaded_from_may_be_overwritten(example, device, driver, tmp_path):
    """Trainers that write every version to one path are not compared with themselves."""
    here = Path(shutil.copytree(example("llama"), tmp_path / "here"))
    runner = TransformersRunner.load(here, device)
    rewrite(here, _cast)
    with pytest.raises(CheckpointMismatch, match="BF16"):
        runner.update_from_disk(here)
    shutil.copytree(example("llama", seed=2), here, dirs_exist_ok=True)
    runner.update_from_disk(here)
    assert driver(runner).generate(PROMPTS, 5) == driver(example("llama", seed=2)).generate(PROMPTS, 5)


def test_a_tied_tensor_may_be_stored_under_both_names_if_they_agree(example, device, driver, tmp_path):
    runner = TransformersRunner.load(example("qwen2"), device)
    second = Path(shutil.copytree(example("qwen2", seed=2), tmp_path / "both"))
    rewrite(second, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    runner.update_from_disk(second)
    assert driver(runner).generate(PROMPTS, 5) == driver(example("qwen2", seed=2)).generate(PROMPTS, 5)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rewrite(second, lambda w, name=name: w[name][3].fill_(float("nan")))
    runner.update_from_disk(second)  # not a number under both names is one value too
    rewrite(second, lambda w: w["lm_head.weight"].add_(1))
    old = {name: weight.clone() for name, weight in runner.named_weights()}
    with pytest.raises(CheckpointMismatch, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        runner.update_from_disk(second)
    assert all(weight.equal(old[name]) or weight.isnan().any() for name, weight in runner.named_weights())


def test_weights_follow_the_dtype_they_are_served_in(example, device):
    runner = TransformersRunner.load(example("llama"), device, dtype=torch.bfloat16)
    runner.update_from_disk(example("llama", seed=2))
    stored = load_file(example("llama", seed=2) / "model.safetensors")
    assert all(torch.equal(w, stored[name].to(torch.bfloat16)) for name, w in runner.named_weights())


def test_an_unservable_directory_is_refused(example, device, second):
    (second / "config.json").write_text(json.dumps({"model_type": "rwkv"}))
    with pytest.raises(UnsupportedModel):
        TransformersRunner.load(example("llama"), device).update_from_disk(second)
