"""Penalties, biases and minimum lengths give the tokens that transformers' own `generate` gives with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

from devicekit.engine import Engine, EngineConfig

PROMPTS = [[5, 9, 300, 44, 7], [7] * 20, list(range(40, 175))]
LENGTH = 30


class Counting(LogitsProcessor):
    """Frequency and presence penalties as OpenAI defines them, and a bias, written out token by token."""

    def __init__(self, prompt: int, frequency: float, presence: float, bias: dict[int, float]) -> None:
        self.prompt, self.frequency, self.presence, self.bias = prompt, frequency, presence, bias

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        output = input_ids[0, self.prompt :].tolist()
        for token in set(output):
            scores[0, token] -= self.frequency * output.count(token) + self.presence
        for token, bias in self.bias.items():
            scores[0, token] += bias
        return scores


@pytest.mark.parametrize(
    "wishes",
    [
        {"repetition_penalty": 1.4},
        {"frequency_penalty": 0.7},
        {"presence_penalty": 1.5},
        {"logit_bias": ((11, 3.0), (12, -100.0), (250, 2.5))},
        {"min_new_tokens": 20},
        {
            "repetition_penalty": 1.2,
            "frequency_penalty": 0.3,
            "presence_penalty": -0.5,
            "logit_bias": ((11, 1.5), (0, 8.0)),
            "min_new_tokens": 12,
        },
    ],
    ids=lambda wishes: "+".join(wishes),
)
def test_tokens_are_those_of_the_model_with_the_same_wishes(
    checkpoints: tuple[Path, Path], wishes: dict[str, object]
) -> None:
    engine = Engine.open(checkpoints[0], "cpu", config=EngineConfig(page_size=4, max_batch_tokens=16))
    # A tendency to end, which a minimum length must overcome.
    wishes = {"logit_bias": ((0, 6.0),), **wishes}
    done = engine.generate(PROMPTS, max_new_tokens=LENGTH, temperature=0.0, **wishes)
    model = AutoModelForCausalLM.from_pretrained(checkpoints[0], dtype="auto").eval()
    plain = engine.generate(PROMPTS, max_new_tokens=LENGTH, temperature=0.0)
    for prompt, ours in zip(PROMPTS, done, strict=True):
        counting = Counting(
            len(prompt),
            wishes.get("frequency_penalty", 0.0),
            wishes.get("presence_penalty", 0.0),
            dict(wishes["logit_bias"]),
        )
        theirs = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=LENGTH,
            do_sample=False,
            repetition_penalty=wishes.get("repetition_penalty", 1.0),
            min_new_tokens=wishes.get("min_new_tokens", 0),
            logits_processor=LogitsProcessorList([counting]),
        )
        assert ours.tokens == theirs[0, len(prompt) :].tolist()
    assert [one.tokens for one in done] != [one.tokens for one in plain]
