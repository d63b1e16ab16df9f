"""Tokens that come one by one have the text that the library gives for all of them."""

from __future__ import annotations

import random
import time

import pytest

from devicekit.text import PlainVocabulary, TokenDecoder
from tests.text.random_tokenizers import KINDS, Made, make

SEEDS = range(25)


def draw(made: Made, rng: random.Random, runs: int, *, specials: bool = True) -> list[int]:
    """Random tokens, of whole characters."""
    found: list[int] = []
    for _ in range(runs):
        found += [rng.choice(made.special)] if specials and rng.random() < 0.2 else rng.choice(made.whole)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_pieces_are_what_the_whole_adds_to_the_prompt(kind: str, seed: int) -> None:
    rng = random.Random(f"{kind} {seed}")
    made = make(kind, rng)
    skip = rng.random() < 0.5
    prompt, tokens = draw(made, rng, rng.randint(0, 6)), draw(made, rng, 20)
    if rng.random() < 0.3:
        tokens.insert(rng.randrange(len(tokens)), 100_000)  # that the tokenizer does not know
    decoder = TokenDecoder(made.vocabulary, prompt, skip_special_tokens=skip)
    text = "".join([*map(decoder.push, tokens), decoder.end()])
    before = made.decode(prompt, skip)
    assert text == made.decode(prompt + tokens, skip)[len(before) :]
    assert TokenDecoder(made.vocabulary, prompt, skip_special_tokens=skip).all(tokens) == text


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("seed", SEEDS)
def test_bytes_that_are_no_text_are_given_out_and_harm_nothing_behind_them(kind: str, seed: int) -> None:
    rng = random.Random(f"broken {kind} {seed}")
    made = make(kind, rng)
    tokens: list[int] = []
    for _ in range(12):
        tokens += (
            rng.choices(made.broken, k=rng.randint(1, 5)) if rng.random() < 0.5 else rng.choice(made.whole)
        )
    decoder = TokenDecoder(made.vocabulary)
    pieces = [decoder.push(token) for token in tokens]
    text = "".join([*pieces, decoder.end()])
    joined = b"".join(map(made.vocabulary.token_bytes, tokens))
    assert text.replace("\N{REPLACEMENT CHARACTER}", "").replace(" ", "") == joined.decode(
        errors="ignore"
    ).replace(" ", "")
    if kind == "byte_level":
        assert text == made.decode(tokens, True)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_invalid_bytes_are_streamed_at_a_cost_that_does_not_grow(kind: str) -> None:
    made = make(kind, random.Random(1))

    def cost(count: int) -> float:
        decoder = TokenDecoder(made.vocabulary)
        began = time.process_time()
        given = [decoder.push(made.broken[2]) for _ in range(count)]
        assert all(given)
        return time.process_time() - began

    cost(10)
    short, long = (min(cost(count) for _ in range(3)) for count in (2_000, 20_000))
    assert long < 40 * short + 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_tokens_cost_as_much_however_many_came_before(kind: str) -> None:
    made = make(kind, random.Random(2))
    longest = 0

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(made.vocabulary, name)

        def decode(self, tokens: list[int], **options: bool) -> str:
            nonlocal longest
            longest = max(longest, len(tokens))
            return made.vocabulary.decode(tokens, **options)

    decoder = TokenDecoder(Counting(), made.whole[0])  # type: ignore[arg-type]  # a vocabulary, but for its type
    text = [decoder.push(token) for token in [*made.whole[1], *(made.special * 300), *made.whole[2]]]
    assert text[-1]
    assert longest < 10


def test_the_first_space_behind_a_prompt_is_kept() -> None:
    made = make("metaspace", random.Random(3))
    ids = made.tokenizer.get_vocab()
    word = next(token for name, token in ids.items() if name.startswith("▁") and len(name) > 1)
    assert TokenDecoder(made.vocabulary, [word]).push(word).startswith(" ")
    assert not TokenDecoder(made.vocabulary, []).push(word).startswith(" ")
    begun = TokenDecoder(made.vocabulary, [made.special[0]], skip_special_tokens=True)
    assert not begun.push(word).startswith(" ")  # a prompt without text is no context


def test_half_a_character_of_the_prompt_is_completed_or_not_spoken_of() -> None:
    made = make("byte_level", random.Random(4))
    table = {made.vocabulary.raw_bytes(token): token for token in range(1, 257)}
    first, *rest = (table[bytes([byte])] for byte in "🙂".encode())
    decoder = TokenDecoder(made.vocabulary, [first])
    assert "".join(map(decoder.push, rest)) == "🙂"
    assert TokenDecoder(made.vocabulary, [first]).push(table[b"a"]) == "a"


def test_a_tokenizer_of_which_nothing_is_known_is_waited_for() -> None:
    made = make("byte_level", random.Random(5))

    class Unknown:
        def decode(self, tokens: list[int]) -> str:
            return made.decode(tokens, True)

    table = {made.vocabulary.raw_bytes(token): token for token in range(1, 257)}
    decoder = TokenDecoder(PlainVocabulary(Unknown()))
    assert [decoder.push(table[bytes([byte])]) for byte in "🙂".encode()] == ["", "", "", "🙂"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokens_own_bytes_do_not_depend_on_where_it_stands(kind: str) -> None:
    made = make(kind, random.Random(6))
    for run in made.whole:
        own = b"".join(map(made.vocabulary.token_bytes, run))
        anchor = made.whole[0]
        behind = made.decode(anchor + run, False)[len(made.decode(anchor, False)) :]
        assert own == behind.encode()
    assert made.vocabulary.token_bytes(made.special[1]) == b"<|tool|>"
