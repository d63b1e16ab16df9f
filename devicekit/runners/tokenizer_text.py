"""A model's tokenizer as the scheduler needs it: token ids to text."""

from __future__ import annotations

from collections.abc import Sequence

from devicekit.runners.huggingface import PreTrainedTokenizerBase


class TokenizerText:
    """A tokenizer's decoder, without the special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text
