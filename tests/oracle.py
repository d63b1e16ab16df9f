"""What a model says by itself: transformers' own greedy generation, one prompt at a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from devicekit.devtools.reference import own_model


def own_answers(path: Path, prompts: Iterable[list[int]], new_tokens: int) -> list[list[int]]:
    """The tokens that follow each prompt; none ends early."""
    model = own_model(path)
    model.generation_config.eos_token_id = None
    answers: list[list[int]] = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new_tokens,
            pad_token_id=0,
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers
