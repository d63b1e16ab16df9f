"""Which requests have run out of time, against a list that is searched from end to end."""

from __future__ import annotations

import random

import numpy as np
import pytest

from devicekit.scheduling.deadlines import Deadlines
from devicekit.scheduling.request import Request, SamplingParams
from tests.seeds import drawn_seed

SEED = drawn_seed("DEADLINES_SEED")


@pytest.mark.parametrize("number", range(4))
def test_they_end_in_the_order_of_their_time_however_many_ended_before(number: int) -> None:
    print(f"DEADLINES_SEED={SEED}")
    chance = random.Random(SEED + number)
    deadlines, now, arrivals = Deadlines(), 0.0, 0
    live: dict[Request, float] = {}
    for step in range(3000):
        act = chance.random()
        if act < (0.8 if step % 500 < 250 else 0.1):  # many come, and then most of them go
            request = Request(f"r{arrivals}", np.ones(1, np.int32), SamplingParams())
            request.arrival = arrivals
            arrivals += 1
            live[request] = now + chance.choice((0.0, chance.random() * 50))
            deadlines.add(request, live[request])
        elif act < 0.9 and live:  # many end before their time: what is left of them is swept away
            gone = chance.choice(list(live))
            del live[gone]
            deadlines.discard(gone)
        else:
            now += chance.random()
            due = sorted((when, one.arrival, one) for one, when in live.items() if now >= when)
            assert deadlines.expired(now) == [one for _, _, one in due]
            for _, _, one in due:
                del live[one]
        assert len(deadlines) == len(live)
        assert deadlines.next == min(live.values(), default=None)
