"""What the model says when transformers runs it alone: the reference that served tokens must equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from devicekit.engine import Generation
from devicekit.runners import huggingface as hf
from devicekit.runners.loading import quiet
from devicekit.runners.state_layers import cache_argument


def own_model(path: Path, dtype: torch.dtype | None = None) -> hf.PreTrainedModel:
    """A model as transformers runs it by itself, in ``dtype`` or in that of its weights."""
    config = hf.AutoConfig.from_pretrained(path, local_files_only=True)
    settings: dict[str, object] = {"dtype": dtype or "auto", "local_files_only": True}
    # transformers 5.17 leaves the cap on scores out of its fused attention, and says nothing.
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
        settings["attn_implementation"] = "eager"
    return hf.AutoModelForCausalLM.from_pretrained(path, **settings).eval()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Served tokens beside reference tokens."""

    id: str
    equal: bool
    tokens: int
    first_difference: int | None  # index into the output


class Oracle:
    """Two versions of a model, run by ``transformers`` one sequence at a time with its own cache.

    Args:
        versions: weight version and model directory, oldest first.
    """

    def __init__(
        self, versions: Sequence[tuple[str, Path]], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._models: dict[str, hf.PreTrainedModel] = {}
        with quiet():
            for version, path in versions:
                self._models[version] = own_model(path, dtype).to(device)
        self._device = device

    @torch.no_grad()
    def tokens(self, prompt: Sequence[int], generation: Generation, limit: int) -> list[int]:
        """The greedy output for a prompt, changing models at the tokens where the engine changed weights.

        The cache of the older weights is kept across the change, as an update in place keeps it.
        """
        sequence = torch.tensor([list(prompt)], device=self._device)
        cache = None
        spans = generation.spans
        for span in spans:
            last = span is spans[-1]
            room = limit - span.start if last else span.end - span.start
            model = self._models[span.version]
            name = cache_argument(model)
            result = model.generate(
                sequence,
                attention_mask=torch.ones_like(sequence),
                max_new_tokens=room,
                do_sample=False,
                return_dict_in_generate=True,
                use_cache=True,
                **{name: cache},
            )
            sequence, cache = result.sequences, result[name]
        found: list[int] = sequence[0, len(prompt) :].tolist()
        return found

    def compare(self, prompt: Sequence[int], generation: Generation, limit: int) -> Comparison:
        """Whether a finished generation equals the reference, token for token."""
        expected = self.tokens(prompt, generation, limit)
        served = generation.tokens
        differences = [
            at for at, pair in enumerate(zip(served, expected, strict=False)) if pair[0] != pair[1]
        ]
        if len(served) != len(expected):
            differences.append(min(len(served), len(expected)))
        first = differences[0] if differences else None
        return Comparison(generation.id, first is None, len(served), first)
