"""Turns token ids into text, one by one. Text that was given out never changes, and adds up to the whole.

Where a token stands for bytes (byte-level tokenizers, and the byte tokens of others), the bytes are put together
here: a character over several tokens waits for its last one, and bytes that can no longer become one are given out
as replacement characters. For everything else the tokenizer's own decoder is asked.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import ClassVar

from devicekit.text.vocabulary import Vocabulary

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CONTEXT = 4  # tokens that are decoded before a new one, for the sake of spaces between them
_LONGEST = 3  # tokens that may make up an unfinished character where nothing is known of their bytes
_VOCABULARIES = 8  # of which the bytes of tokens are kept
_EACH_BYTE = "devicekit_each_byte"


def _replace_each(error: UnicodeError) -> tuple[str, int]:
    """One replacement character for every byte, as tokenizers with byte tokens write it."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return _REPLACEMENT * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _replace_each)


class _Pieces(dict[int, bytes]):
    """The bytes that a byte-level token adds to the text, looked up when it comes up for the first time."""

    _known: ClassVar[
        dict[tuple[int, bool], _Pieces]
    ] = {}  # of the vocabularies of late, which these keep alive

    def __init__(self, vocabulary: Vocabulary, skip_special_tokens: bool) -> None:
        super().__init__()
        self._vocabulary = vocabulary
        self._skip = skip_special_tokens

    @classmethod
    def of(cls, vocabulary: Vocabulary, skip_special_tokens: bool) -> _Pieces:
        """The pieces of a vocabulary, shared by all callers. Safe from any thread."""
        key = (id(vocabulary), skip_special_tokens)
        found = cls._known.get(key)
        if found is None:
            found = cls._known[key] = cls(vocabulary, skip_special_tokens)
            for old in list(cls._known)[:-_VOCABULARIES]:
                cls._known.pop(old, None)
        return found

    def __missing__(self, token: int) -> bytes:
        hidden = self._vocabulary.is_hidden(token, self._skip)
        piece = self[token] = b"" if hidden else self._vocabulary.raw_bytes(token) or b""
        return piece


class TokenDecoder:
    """The text of one growing list of tokens.

    Args:
        prompt: the tokens before the first one; their last ones are the context that text depends on.
        skip_special_tokens: leave special tokens out of the text.
        spaces: put spaces between special tokens, where the tokenizer knows such a thing.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        spaces: bool = True,
    ) -> None:
        self._vocabulary = vocabulary
        self._skip = skip_special_tokens
        self._spaces = spaces
        self._context = _visible_end(vocabulary, prompt, skip_special_tokens)
        self._waiting: list[int] = []  # tokens that end in half a character
        self._stream: Callable[[int], str | None] | None = None
        self._byte_level = vocabulary.byte_level
        self._pieces = _Pieces.of(vocabulary, skip_special_tokens)
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace" if self._byte_level else _EACH_BYTE)
        self._shown = self._begin_in_prompt()

    def push(self, token: int) -> str:
        """The text that a token adds. Half a character is kept until it is whole, or cannot become so."""
        vocabulary = self._vocabulary
        if self._byte_level:
            return self._own(self._bytes.decode(self._pieces[token]))
        if vocabulary.is_hidden(token, self._skip):
            return ""
        raw = vocabulary.raw_bytes(token)
        if raw is not None:
            self._context = [*self._context[1 - _CONTEXT :], token]
            self._stream = None
            return self._own(self._bytes.decode(raw))
        return self._own(self._bytes.decode(b"", final=True)) + self._ask(token)

    def end(self) -> str:
        """End the list of tokens: half a character is given out as replacement characters."""
        rest = self._own(self._bytes.decode(b"", final=True))
        if self._waiting:
            rest += self._added(self._waiting)
            self._waiting = []
        return rest

    def all(self, tokens: Sequence[int]) -> str:
        """The text that many tokens add; the same as `push` for each."""
        if self._byte_level:
            return self._own(self._bytes.decode(b"".join(map(self._pieces.__getitem__, tokens))))
        return "".join(map(self.push, tokens))

    def _begin_in_prompt(self) -> int:
        """Take over half a character at the end of the prompt; how many replacement characters it showed as."""
        raw: list[bytes] = []
        for token in reversed(self._context):
            if (piece := self._vocabulary.raw_bytes(token)) is None:
                break
            raw.append(piece)
        self._bytes.decode(b"".join(reversed(raw)))
        half, _ = self._bytes.getstate()
        return (1 if self._byte_level else len(half)) if half else 0

    def _own(self, text: str) -> str:
        """The part of the first text that belongs to the output, without the completed half character."""
        if not (self._shown and text):
            return text
        begin = 0
        while begin < self._shown and text.startswith(_REPLACEMENT, begin):
            begin += 1
        self._shown = 0
        return text[begin:]

    def _ask(self, token: int) -> str:
        """The text that a token without bytes of its own adds, by the tokenizer's own decoder."""
        if (
            self._stream is None
            and not self._waiting
            and not self._decode(self._context).endswith(_REPLACEMENT)
        ):
            self._stream = self._vocabulary.stream(self._context, self._skip)
        if self._stream is not None:
            text = self._stream(token)
            if text is not None:
                self._context = [*self._context[1 - _CONTEXT :], token]
                return text
            self._stream = None  # it waits, or is lost: begin anew behind this token
        self._waiting.append(token)
        text = self._added(self._waiting)
        if (
            text.endswith(_REPLACEMENT)
            and len(self._waiting) <= _LONGEST
            and not self._vocabulary.knows_bytes
        ):
            return ""
        self._context = [*self._context, *self._waiting][-_CONTEXT:]
        self._waiting = []
        return text

    def _added(self, tokens: Sequence[int]) -> str:
        """What tokens add to the context, by decoding both."""
        before = self._decode(self._context)
        after = self._decode([*self._context, *tokens])
        return after[len(before) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        if not tokens:
            return ""
        return self._vocabulary.decode(tokens, skip_special_tokens=self._skip, spaces=self._spaces)


def _visible_end(vocabulary: Vocabulary, prompt: Sequence[int], skip_special_tokens: bool) -> list[int]:
    """The last tokens of a prompt that have text."""
    found: list[int] = []
    for at in range(len(prompt) - 1, -1, -1):
        token = int(prompt[at])
        if not vocabulary.is_hidden(token, skip_special_tokens):
            found.append(token)
            if len(found) == _CONTEXT:
                break
    return found[::-1]
