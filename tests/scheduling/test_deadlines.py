"""Which requests have run out of time, against a list that is searched from end to end."""

from __future__ import annotations

import random

import pytest

from devicekit.scheduling.deadlines import Deadlines
from devicekit.scheduling.request import Request, SamplingParams
from tests.seeds import drawn_seed

SEED = drawn_seed("DEADLINES_SEED")


@pytest.mark.parametrize("number", range(4))
def test_they_end_in_the_order_of_their_time_however_many_ended_before(number: int) -> None:
    print(f"DEADLINES_SEED={SEED}")
    chance = random.Random(SEED + number)
    deadlines, live, now, arrivals = Deadlines(), [], 0.0, 0
    for step in range(3000):
        act = chance.random()
        if act < (0.8 if step % 500 < 250 else 0.1):  # many come, and then most of them go
            request = Request(f"r{arrivals}", [1], SamplingParams())
            request.arrival = arrivals
            arrivals += 1
            deadlines.add(request, now + chance.choice((0.0, chance.random() * 50)))
            live.append(request)
        elif act < 0.9 and live:  # many end before their time: what is left of them is swept away
            deadlines.discard(live.pop(chance.randrange(len(live))))
        else:
            now += chance.random()
            due = [one for one in live if now >= one.deadline]
            assert deadlines.expired(now) == sorted(due, key=lambda one: (one.deadline, one.arrival))
            live = [one for one in live if one not in due]
        assert len(deadlines) == len(live)
        assert deadlines.next == min((one.deadline for one in live), default=None)
