"""Token masks for requests whose output follows a grammar. A pass without such requests pays nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from devicekit.scheduling.batch import TokenMasks
from devicekit.scheduling.request import Request

if TYPE_CHECKING:
    from devicekit.scheduling.requests import Requests


def token_masks(requests: Requests, joining: Sequence[Request], vocab_size: int) -> TokenMasks | None:
    """The masks of a pass; ``None`` if no request in it follows a grammar.

    Args:
        joining: requests whose prompt the pass completes; their tokens follow those of the running batch.
    """
    behind = len(requests.running)
    places = {request.id: behind + at for at, request in enumerate(joining) if request.params.max_new_tokens}
    for request in requests.constrained.values():
        if request.column >= 0:
            places[request.id] = request.column
    asking = [(places[one.id], one.matcher) for one in requests.constrained.values() if one.id in places]
    if not asking:
        return None
    bits = np.zeros((len(asking), -(-vocab_size // 32)), np.int32)
    for at, (_, matcher) in enumerate(asking):
        if matcher is not None:
            matcher.fill(bits[at : at + 1])
    return TokenMasks(np.array([place for place, _ in asking], np.int64), bits)
