"""The vocabulary of a Hugging Face tokenizer. Of fast ones, the library behind them is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Steps of a decoder that change nothing about what bytes a byte-level token stands for.
_NEUTRAL = frozenset({"ByteLevel", "Fuse"})
_PROBES = "aebtxABnos0159"


class TokenizerVocabulary:
    """What decoding needs of a tokenizer.

    Args:
        tokenizer: of transformers; one over the tokenizers library is known best.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._fast = getattr(tokenizer, "backend_tokenizer", None)
        self._kinds = frozenset() if self._fast is None else frozenset(_kinds(self._fast.decoder))
        self.byte_level = "ByteLevel" in self._kinds and self._kinds <= _NEUTRAL
        # Of a decoder that is not known every token may be a part of a character.
        self.knows_bytes = self._fast is not None and not self._kinds & {"unknown", "ByteLevel"}
        self._byte_tokens = "ByteFallback" in self._kinds
        self._own: dict[int, bytes] = {}

    # -- Vocabulary -------------------------------------------------------------------------------------------

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True, spaces: bool = True) -> str:
        """The text of tokens. No spaces are taken out afterwards: what was streamed could not follow."""
        text: str
        if self._fast is not None:
            text = self._fast.decode(list(tokens), skip_special_tokens=skip_special_tokens)
            return text
        text = self._tokenizer.decode(
            list(tokens),
            skip_special_tokens=skip_special_tokens,
            spaces_between_special_tokens=spaces,
            clean_up_tokenization_spaces=False,
        )
        return text

    def is_hidden(self, token: int, skip_special_tokens: bool) -> bool:
        if skip_special_tokens and token in self._special:
            return True
        return self._names.get(token) is None

    def raw_bytes(self, token: int) -> bytes | None:
        if self.byte_level:
            return self._table.get(token, b"")
        return self._byte_pieces.get(token) if self._byte_tokens else None

    def token_bytes(self, token: int) -> bytes:
        known = self._own.get(token)
        if known is None:
            known = self._own[token] = self._find_own(token)
        return known

    def stream(self, context: Sequence[int], skip_special_tokens: bool) -> Callable[[int], str | None] | None:
        if self._fast is None:
            return None
        from tokenizers.decoders import DecodeStream

        fast = self._fast
        stream = DecodeStream(list(context), skip_special_tokens)

        def step(token: int) -> str | None:
            try:
                text: str | None = stream.step(fast, token)
            except (
                Exception
            ):  # the context reads differently with what follows it: the caller looks for itself
                return None
            return text

        return step

    # -- What is read once ------------------------------------------------------------------------------------

    @cached_property
    def _names(self) -> Mapping[int, str]:
        """Every token's name in the vocabulary."""
        return {token: name for name, token in self._tokenizer.get_vocab().items()}

    @cached_property
    def _added(self) -> Mapping[int, str]:
        """Tokens that are no part of the model's own vocabulary, and what they look like."""
        if self._fast is None:
            return {token: str(one) for token, one in self._tokenizer.added_tokens_decoder.items()}
        return {token: one.content for token, one in self._fast.get_added_tokens_decoder().items()}

    @cached_property
    def _special(self) -> frozenset[int]:
        if self._fast is None:
            return frozenset(self._tokenizer.all_special_ids)
        added = self._fast.get_added_tokens_decoder()
        return frozenset(token for token, one in added.items() if one.special)

    @cached_property
    def _table(self) -> Mapping[int, bytes]:
        """The bytes of every token, of a byte-level tokenizer."""
        alphabet = _byte_alphabet()
        found: dict[int, bytes] = {}
        for token, name in self._names.items():
            try:
                found[token] = bytes(alphabet[character] for character in name)
            except KeyError:  # an added token, written as it is
                found[token] = name.encode()
        return found

    @cached_property
    def _byte_pieces(self) -> Mapping[int, bytes]:
        """The byte of each byte token, of a tokenizer that has some."""
        return {
            token: bytes([int(match[1], 16)])
            for token, name in self._names.items()
            if (match := _BYTE_TOKEN.fullmatch(name))
        }

    @cached_property
    def _probe(self) -> int | None:
        """A token with a text of its own, behind which others show theirs."""
        for name in _PROBES:
            for candidate in (name, f"▁{name}", f"Ġ{name}"):
                token = self._tokenizer.get_vocab().get(candidate)
                if token is not None and self.decode([token]).strip() == name:
                    return int(token)
        return next((token for token in self._names if self.decode([token]).strip().isalnum()), None)

    def _find_own(self, token: int) -> bytes:
        if token not in self._names:
            return b""
        if token in self._added and token in self._special:
            return self._added[token].encode()
        raw = self.raw_bytes(token)
        if raw is not None:
            return raw
        if self._probe is None:
            return self.decode([token], skip_special_tokens=False).encode()
        before = self.decode([self._probe], skip_special_tokens=False)
        return self.decode([self._probe, token], skip_special_tokens=False)[len(before) :].encode()


def _kinds(decoder: Any) -> Iterator[str]:
    """The kinds of a decoder's steps."""
    if decoder is None:
        return
    try:
        state = json.loads(decoder.__getstate__())
    except (TypeError, ValueError, AttributeError):  # one of the caller's own making
        yield "unknown"
        return
    for one in state.get("decoders", [state]):
        yield str(one.get("type", "unknown"))


def _byte_alphabet() -> Mapping[str, int]:
    """The characters that stand for bytes in byte-level vocabularies: printable ones for themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + at): byte for at, byte in enumerate(others)})
    return alphabet
