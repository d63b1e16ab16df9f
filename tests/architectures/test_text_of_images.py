"""The text of a model of images and text, from its whole checkpoint: its own tokens, or a refusal in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from devicekit.engine import Engine
from devicekit.runners import UnsupportedModel
from devicekit.scheduling.request import SamplingParams
from tests.architectures.tiny import write_tiny

PROMPTS = [[5, 6, 7, 8, 9], list(range(100, 133))]
GREEDY = SamplingParams(max_new_tokens=12, temperature=0.0, ignore_eos=True)


@torch.no_grad()
def answers_of_whole(path: Path) -> list[list[int]]:
    """What the model with its eyes says where there is nothing to see."""
    model = AutoModelForImageTextToText.from_pretrained(path).eval()
    return [
        model.generate(
            torch.tensor([prompt]), min_new_tokens=12, max_new_tokens=12, do_sample=False, pad_token_id=0
        )[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]


@pytest.mark.parametrize("architecture", ["gemma3", "llama4", "qwen3_5"])
def test_the_text_is_served_and_updated_from_whole_checkpoints(architecture: str, tmp_path: Path) -> None:
    first, second = (
        write_tiny(architecture, tmp_path / str(seed), seed=seed, kind=AutoModelForImageTextToText)
        for seed in (1, 2)
    )
    engine = Engine.open(first, "cpu")
    for path in (first, second):
        if path is second:
            assert engine.update_weights_from_disk(str(path)).success
        said = [one.tokens for one in engine.generate(PROMPTS, GREEDY)]
        assert said == answers_of_whole(path)


@pytest.mark.parametrize("architecture", ["qwen2_5_vl", "mistral3", "mllama"])
def test_what_has_no_causal_model_of_its_text_is_refused_in_one_line(
    architecture: str, tmp_path: Path
) -> None:
    path = write_tiny(architecture, tmp_path, kind=AutoModelForImageTextToText)
    with pytest.raises(UnsupportedModel) as refused:
        Engine.open(path, "cpu")
    assert "\n" not in str(refused.value)
    assert architecture.partition("_")[0].lower() in str(refused.value).lower()
