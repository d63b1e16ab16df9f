"""Makes tokens of texts from outside, but of no more text than the model can take."""

from __future__ import annotations

from collections.abc import Callable

from devicekit.server.errors import BadRequest

# Characters of a token, on the average of a whole prompt, beyond which nothing is worth the work.
_DENSEST = 16
_SHORT = 4096  # characters that are made tokens of in any case
_STEP = 4  # a text is tried in parts, each so many times as long as the one before
_SPARE = 64  # tokens by which the beginning of a text may have more than the whole: words are cut at its end


def tokens_of(encode: Callable[[str], list[int]], text: str, longest: int) -> list[int]:
    """The tokens of a text. Of one that is far too long, the rest is not looked at.

    Args:
        encode: makes tokens.
        text: of any length.
        longest: tokens that the model takes in all.

    Raises:
        BadRequest: the text has more.
    """
    size = max(_SHORT, longest)
    while size < len(text):
        if len(encode(text[:size])) > longest + _SPARE or size > _DENSEST * longest:
            raise BadRequest(
                f"The prompt has more than {longest} tokens, and the model takes fewer than {longest}."
            )
        size *= _STEP
    return encode(text)
