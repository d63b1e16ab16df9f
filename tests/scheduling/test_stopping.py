"""What an output ends with, where its last text is certain only once it has ended."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from devicekit.scheduling.batch import ModelLimits
from devicekit.scheduling.request import Finish, FinishKind, Request, SamplingParams
from devicekit.scheduling.stopping import StopConditions

END, HALF = 0, 0xC3  # the first byte of two


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, tokens: Sequence[int], **options: object) -> str:
        return bytes(token for token in tokens if token != END).decode("utf-8", "replace")


@pytest.mark.parametrize("keep_stop", [False, True])
@pytest.mark.parametrize(
    ("stop", "matched"), [("\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}"), ("b", END)]
)
def test_a_stop_string_that_half_a_character_becomes_at_the_end_is_what_was_met(
    stop: str, matched: str | int, keep_stop: bool
) -> None:
    conditions = StopConditions(ModelLimits(256, 100, frozenset({END})), Bytes())
    request = Request("r", np.array([97], np.int32), SamplingParams(stop=(stop,), keep_stop=keep_stop))
    conditions.begin(request)
    for token, finish in ((97, None), (HALF, None), (END, Finish(FinishKind.STOP, matched))):
        request.total += 1
        assert conditions.check(request, token) == finish
