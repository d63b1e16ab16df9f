"""What decoding needs to know of a tokenizer to turn tokens into text one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Vocabulary(Protocol):
    """A tokenizer's tokens, as decoding sees them."""

    @property
    def byte_level(self) -> bool:
        """Whether every token stands for bytes, and text is nothing but those."""
        ...

    @property
    def knows_bytes(self) -> bool:
        """Whether all tokens that may be a part of a character have `raw_bytes`."""
        ...

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True, spaces: bool = True) -> str:
        """The text of tokens, all at once.

        Args:
            spaces: put spaces between special tokens that are shown, where the tokenizer knows such a thing.
        """
        ...

    def is_hidden(self, token: int, skip_special_tokens: bool) -> bool:
        """Whether a token is never seen in the text: special tokens if those are skipped, and unknown ones."""
        ...

    def raw_bytes(self, token: int) -> bytes | None:
        """The bytes that a token stands for, whatever is around it; ``None`` if its text depends on its place."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The token's own bytes, as they come up within a text; of special tokens their name."""
        ...

    def stream(self, context: Sequence[int], skip_special_tokens: bool) -> Callable[[int], str | None] | None:
        """The tokenizer's own incremental decoder: called with a token, it returns the text that this adds.

        ``None`` if it has none. The decoder returns ``None`` where it cannot tell.
        """
        ...


class Decodes(Protocol):
    """The least that is needed: token ids in, text out."""

    def decode(self, tokens: Sequence[int]) -> str: ...


class PlainVocabulary:
    """A vocabulary that can only decode. Characters over several tokens are waited for."""

    byte_level = False
    knows_bytes = False

    def __init__(self, decoder: Decodes) -> None:
        self._decoder = decoder

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True, spaces: bool = True) -> str:
        return self._decoder.decode(list(tokens))

    def is_hidden(self, token: int, skip_special_tokens: bool) -> bool:
        return False

    def raw_bytes(self, token: int) -> bytes | None:
        return None

    def token_bytes(self, token: int) -> bytes:
        return self._decoder.decode([token]).encode()

    def stream(self, context: Sequence[int], skip_special_tokens: bool) -> Callable[[int], str | None] | None:
        return None


def vocabulary_of(decoder: Vocabulary | Decodes) -> Vocabulary:
    """A vocabulary is returned as it is; anything else that decodes becomes a `PlainVocabulary`."""
    return decoder if isinstance(decoder, Vocabulary) else PlainVocabulary(decoder)
