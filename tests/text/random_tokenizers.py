"""Small tokenizers of every kind, with a random vocabulary, built by the library that real ones come from."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from devicekit.text import TokenizerVocabulary

KINDS = ("byte_level", "metaspace", "wordpiece", "byte_fallback")
CHARACTERS = "abcé日🙂"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE = re.compile("<0x[0-9A-F]{2}>")
SPECIAL = ("<s>", "<|tool|>", "<|end|>")


@dataclass(frozen=True)
class Made:
    """A tokenizer, and which of its tokens may follow any other without making bytes that are no text."""

    tokenizer: PreTrainedTokenizerFast
    vocabulary: TokenizerVocabulary
    whole: list[list[int]]  # runs of tokens that are whole characters together
    broken: list[int]  # tokens that are no whole characters
    special: list[int]
    replacement: int | None  # the token of a replacement character, where there are byte tokens

    def decode(self, tokens: list[int], skip: bool) -> str:
        """What the library says of all of them at once.

        For a byte token that is no text it would take back the characters that byte tokens beside it make: it is
        told that each of those is a replacement character.
        """
        every = zip(tokens, self.tokenizer.convert_ids_to_tokens(tokens), strict=True)
        known = [(token, name) for token, name in every if name is not None]
        shown = [(token, name) for token, name in known if not (skip and token in self.special)]
        no_text = {*_no_text([name for _, name in shown])}
        told = [self.replacement if at in no_text else token for at, (token, _) in enumerate(shown)]
        text: str = self.tokenizer.backend_tokenizer.decode(told, skip_special_tokens=skip)
        return text


def _no_text(names: list[str]) -> Iterator[int]:
    """Where byte tokens are no part of a character."""
    at = 0
    while at < len(names):
        sizes = range(1, 5) if _BYTE.fullmatch(names[at]) else ()
        size = next((size for size in sizes if _is_character(names[at : at + size])), None)
        if sizes and size is None:
            yield at
        at += size or 1


def _is_character(names: list[str]) -> bool:
    if not all(map(_BYTE.fullmatch, names)):
        return False
    try:
        return len(bytes(int(name[3:5], 16) for name in names).decode()) == 1
    except UnicodeDecodeError:
        return False


def make(kind: str, rng: random.Random) -> Made:
    """A tokenizer of a kind."""
    words = {"".join(rng.choices(CHARACTERS + "abc.", k=rng.randint(1, 4))) for _ in range(24)} | {
        "a",
        "b",
        ".",
    }
    names, pieces, broken = {
        "byte_level": _byte_level,
        "metaspace": _metaspace,
        "wordpiece": _wordpiece,
        "byte_fallback": _byte_fallback,
    }[kind](sorted(words), rng)
    vocabulary = {name: at for at, name in enumerate(["<unk>", *dict.fromkeys(names)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.decoder = {
        "byte_level": decoders.ByteLevel(),
        "metaspace": decoders.Metaspace(),
        "wordpiece": decoders.WordPiece(),
        "byte_fallback": decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    }[kind]
    backend.add_special_tokens([*SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|end|>")
    ids = tokenizer.get_vocab()
    return Made(
        tokenizer,
        TokenizerVocabulary(tokenizer),
        [[ids[name] for name in run] for run in pieces],
        [ids[name] for name in broken],
        [ids[name] for name in SPECIAL],
        ids.get(_REPLACEMENT),
    )


Pieces = tuple[list[str], list[list[str]], list[str]]


def _byte_level(words: list[str], rng: random.Random) -> Pieces:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        alphabet.setdefault(byte, chr(256 + len(alphabet) - len(printable)))
    names, runs, broken = [*alphabet.values()], [], [alphabet[0xFF], alphabet[0xC3], alphabet[0x80]]
    for word in words:
        content = (" " + word if rng.random() < 0.3 else word).encode()
        cuts = sorted({0, len(content), *(rng.randrange(len(content)) for _ in range(rng.randint(0, 3)))})
        run = ["".join(alphabet[byte] for byte in content[a:b]) for a, b in itertools.pairwise(cuts)]
        names += run
        runs.append(run)
    return names, runs, broken


def _metaspace(words: list[str], rng: random.Random) -> Pieces:
    names = [("▁" if rng.random() < 0.5 else "") + word for word in words] + ["▁"]
    return names, [[name] for name in names], []


def _wordpiece(words: list[str], rng: random.Random) -> Pieces:
    names = [("##" if rng.random() < 0.5 else "") + word for word in words] + ["'", "##n"]
    return names, [[name] for name in names], []


def _byte_fallback(words: list[str], rng: random.Random) -> Pieces:
    names = [("▁" if rng.random() < 0.5 else "") + word for word in words] + ["▁"]
    table = [f"<0x{byte:02X}>" for byte in range(256)]
    runs = [[name] for name in names]
    runs += [[table[byte] for byte in character.encode()] for character in CHARACTERS]
    return [*names, *table, _REPLACEMENT], runs, [table[0xFF], table[0xC3], table[0x80]]
