"""One forward pass of a transformers model over packed tokens."""

from __future__ import annotations

import inspect

import torch

from devicekit.runners import huggingface as hf
from devicekit.runners.own_attention import OWN_ATTENTION


class PackedForward:
    """Calls a model with the tokens of many sequences in one row. Keys, values and states are kept elsewhere."""

    def __init__(self, model: hf.PreTrainedModel) -> None:
        self._model = model
        self.parameters = frozenset(inspect.signature(model.forward).parameters)
        own = OWN_ATTENTION.get(model.config.get_text_config().model_type)
        self.needs_positions = own is None or own.positions
        # A mask of four dimensions is handed on as it is, by models that do not take none for an answer.
        self._needs_mask = own is not None and own.needs_mask

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        dtype: torch.dtype = self._model.dtype
        return dtype

    def __call__(self, tokens: torch.Tensor, positions: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Logits of the tokens that ``wanted`` ([L], int64) indexes: [L, vocabulary]. ``tokens`` is [T]."""
        arguments: dict[str, object] = {}
        if "position_ids" in self.parameters:
            arguments["position_ids"] = positions.unsqueeze(0)
        if self._needs_mask:
            arguments["attention_mask"] = tokens.new_zeros(1, 1, 1, 1)
        output = self._model(
            input_ids=tokens.unsqueeze(0), use_cache=False, logits_to_keep=wanted, **arguments
        )
        logits: torch.Tensor = output.logits[0]
        return logits
