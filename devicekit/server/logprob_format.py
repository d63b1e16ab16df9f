"""Log-probabilities in answers: tokens under names that tell them apart, and null where there is no number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from devicekit.scheduling.request import TokenLogprob
from devicekit.text import Vocabulary


class Named(NamedTuple):
    """One token at one place."""

    token: int
    name: str
    logprob: float | None
    bytes: list[int]


def token_name(vocabulary: Vocabulary, token: int) -> str:
    """How a token looks; its bytes, if it is not whole characters."""
    raw = vocabulary.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def finite(logprob: float) -> float | None:
    """A log-probability that JSON can carry; ``None`` for a token that has no chance, or logits that are none."""
    return logprob if math.isfinite(logprob) else None


def named(vocabulary: Vocabulary, token: int, logprob: float) -> Named:
    """A token as an answer shows it."""
    return Named(token, token_name(vocabulary, token), finite(logprob), [*vocabulary.token_bytes(token)])


def alternatives(vocabulary: Vocabulary, one: TokenLogprob, count: int) -> list[Named]:
    """The ``count`` likeliest tokens of a place, each with a name of its own, and the token itself among them."""
    ranked = [pair for pair in one.top[:count] if math.isfinite(pair[1])]
    if all(token != one.token for token, _ in ranked):
        ranked = [*ranked[: max(0, count - 1)], (one.token, one.logprob)]
    taken = {token_name(vocabulary, one.token)}
    found: list[Named] = []
    for token, value in ranked:
        entry = named(vocabulary, token, value)
        if token != one.token and entry.name in taken:  # another token that looks the same
            entry = entry._replace(name=f"token_id:{token}")
        taken.add(entry.name)
        found.append(entry)
    return found


def triple(vocabulary: Vocabulary | None, token: int, logprob: float | None) -> list[object]:
    """A log-probability as SGLang writes it; with the token's text if ``vocabulary`` is given."""
    text = None if vocabulary is None else vocabulary.token_bytes(token).decode(errors="replace")
    return [None if logprob is None else finite(logprob), token, text]


def triples(vocabulary: Vocabulary | None, pairs: Sequence[tuple[int, float]]) -> list[list[object]]:
    """Several of them."""
    return [triple(vocabulary, token, value) for token, value in pairs]
