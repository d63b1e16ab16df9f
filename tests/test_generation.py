"""Text that is given out piece by piece is the text of the whole, and never changes afterwards."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from devicekit.engine import IncrementalText
from devicekit.runners.checkpoint import ModelDirectory


class Tokenizer:
    def __init__(self, path: Path) -> None:
        self.tokenizer = ModelDirectory.open(path).tokenizer()

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text


@pytest.fixture(scope="module")
def tokenizer(checkpoints: tuple[Path, Path]) -> Tokenizer:
    return Tokenizer(checkpoints[0])


TEXTS = ("Pages of keys — and values", "naïve café, 日本語 and 🙂🙃 emoji", "a\n\n  b\tc", "مرحبا بالعالم")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("seed", range(4))
def test_pieces_add_up_to_the_text(tokenizer: Tokenizer, text: str, seed: int) -> None:
    rng = random.Random(seed)
    tokens = tokenizer.tokenizer.encode(text)
    stream, pieces, at = IncrementalText(tokenizer), [], 0
    while at < len(tokens):
        size = rng.randint(1, 4)
        pieces.append(stream.add(tokens[at : at + size], last=at + size >= len(tokens)))
        at += size
    assert "".join(pieces) == tokenizer.decode(tokens)


def test_half_a_character_is_kept_until_it_is_whole(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.tokenizer.encode("🙂")
    assert len(tokens) > 1
    stream = IncrementalText(tokenizer)
    assert [stream.add([token]) for token in tokens[:-1]] == [""] * (len(tokens) - 1)
    assert stream.add(tokens[-1:]) == "🙂"


def test_an_output_that_ends_in_half_a_character_ends(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.tokenizer.encode("a🙂")[:-1]
    stream = IncrementalText(tokenizer)
    given = "".join([*(stream.add([token]) for token in tokens), stream.add([], last=True)])
    assert given == tokenizer.decode(tokens)


def test_a_long_output_is_decoded_in_pieces(tokenizer: Tokenizer) -> None:
    longest = 0

    class Counting:
        def decode(self, tokens: Sequence[int]) -> str:
            nonlocal longest
            longest = max(longest, len(tokens))
            return tokenizer.decode(tokens)

    stream = IncrementalText(Counting())
    for token in tokenizer.tokenizer.encode("Pages of keys and values. " * 40):
        stream.add([token])
    assert longest < 20  # cost per token does not grow with the output
