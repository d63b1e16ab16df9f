"""One architecture's verdict: its tokens are the model's own, or it is refused by name. All else is a fault."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import devicekit
from devicekit.contract.errors import DeviceKitError
from devicekit.runners.transformers_runner import TransformersRunner
from tests.architectures.tiny import NoTinyModel, write_tiny
from tests.oracle import own_answers
from tests.runners.conftest import Driver

PROMPT_LENGTHS = (1, 7, 33)
NEW_TOKENS = 16


class Verdict(Enum):
    """What became of an architecture."""

    EQUAL = "equal tokens"
    REFUSED = "refused"
    WRONG = "WRONG"
    UNTRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Finding:
    """An architecture, its verdict, and in words what there is to say of it."""

    architecture: str
    verdict: Verdict
    remark: str = ""


def judge(architecture: str, *, seed: int = 0) -> Finding:
    """Make a tiny model, and run it alone and in pages."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = write_tiny(architecture, Path(folder), seed=seed)
        except NoTinyModel as error:
            return Finding(architecture, Verdict.UNTRIED, str(error))
        return judge_directory(architecture, path, seed=seed)


def judge_directory(architecture: str, path: Path, *, seed: int = 0) -> Finding:
    """Run the model of a directory alone and in pages."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(3, 384, length).tolist() for length in PROMPT_LENGTHS]
    try:
        runner = TransformersRunner.load(path, devicekit.get_device("cpu"))
        _ = runner.limits
    except DeviceKitError as error:
        return Finding(architecture, Verdict.REFUSED, str(error).replace(f"{path}: ", ""))
    try:
        alone = own_answers(path, prompts, NEW_TOKENS)
    except Exception as error:  # whatever the model itself does not do
        return Finding(architecture, Verdict.UNTRIED, f"generate: {type(error).__name__}: {str(error)[:200]}")
    remark = ""
    try:
        served = Driver(runner, page_size=4, seed=seed).generate(prompts, NEW_TOKENS)
        if served != alone and (apart := _disagreement(path, prompts[-1])) > 1e-3:
            remark = (
                "if no prompt is cut into chunks: one pass and a pass for each token differ by "
                f"{apart:.0e} in the model itself"
            )
            served = Driver(runner, page_size=4, seed=seed).generate(prompts, NEW_TOKENS, whole=True)
    except Exception as error:
        return Finding(architecture, Verdict.WRONG, f"{type(error).__name__}: {str(error)[:200]}")
    if served != alone:
        equal = sum(one == other for one, other in zip(served, alone, strict=True))
        return Finding(architecture, Verdict.WRONG, f"{equal} of {len(prompts)} answers are equal")
    if max(len(set(answer)) for answer in alone) < 4:
        return Finding(architecture, Verdict.UNTRIED, "the model says one token for ever")
    return Finding(architecture, Verdict.EQUAL, remark)


@torch.no_grad()
def _disagreement(path: Path, tokens: list[int]) -> float:
    """By how much a model's logits differ from its own, computed token by token with its own cache."""
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    whole = model(torch.tensor([tokens])).logits[0, 1:]
    begun = model(torch.tensor([tokens[:1]]), use_cache=True)
    cache = getattr(begun, "past_key_values", None)
    stepwise = [
        model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[0, -1]
        for token in tokens[1:]
    ]
    return float((torch.stack(stepwise) - whole).abs().max())
