"""The earliest match wins, then the longest, however the text is cut."""

from __future__ import annotations

import random

import pytest

from devicekit.text import StopMatcher, StopStrings


def naive(text: str, stops: list[str]) -> tuple[int, int] | None:
    found = [(text.find(stop), -len(stop)) for stop in stops if stop in text]
    return (min(found)[0], -min(found)[1]) if found else None


def cut(text: str, rng: random.Random) -> list[str]:
    pieces = []
    while text:
        size = rng.randint(1, 4)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@pytest.mark.parametrize("seed", range(300))
def test_a_match_is_the_naive_one_and_no_more_is_held_back_than_may_begin_it(seed: int) -> None:
    rng = random.Random(seed)
    alphabet = "ab" if seed % 2 else "abcé\n"
    stops = ["".join(rng.choices(alphabet, k=rng.randint(1, 5))) for _ in range(rng.randint(1, 4))]
    text = "".join(rng.choices(alphabet, k=30))
    matcher = StopMatcher(StopStrings.compiled(tuple(stops)))
    seen = ""
    for piece in cut(text, rng):
        seen += piece
        if matcher.feed(piece):
            break
        begins = [at for at in range(len(seen)) if any(stop.startswith(seen[at:]) for stop in stops)]
        match = naive(seen, stops)
        first = min([*begins, *([match[0]] if match else []), len(seen)])
        assert matcher.held == len(seen) - first
    matcher.end()
    assert matcher.found == naive(text, stops)


def test_the_order_of_the_list_does_not_matter() -> None:
    for stops in (("re", "he"), ("he", "re")):
        matcher = StopMatcher(StopStrings(stops))
        assert matcher.feed(" there")
        assert matcher.found == (2, 2)


def test_many_long_stop_strings_cost_little_for_each_character() -> None:
    rng = random.Random(1)
    stops = tuple("".join(rng.choices("abcdefgh", k=100)) for _ in range(300))
    matcher = StopMatcher(StopStrings(stops))
    text = "".join(rng.choices("abcdefgh", k=5000))
    assert not matcher.feed(text)
    assert matcher.held < 100
