"""Which cached prefixes a scheduler gives up first is a setting, and what it knows of requests counts there."""

from __future__ import annotations

import numpy as np
import pytest

import devicekit
from devicekit.memory.errors import UnknownPolicy
from devicekit.scheduling.request import Request, SamplingParams
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits
from tests.scheduling.test_audit import OneTokenRunner


def test_priority_decides_what_leaves_the_cache_where_the_eviction_policy_says_so() -> None:
    limits = SchedulerLimits(
        num_pages=12, page_size=4, max_running=2, max_batch_tokens=64, eviction="priority", checked=True
    )
    one = Scheduler(OneTokenRunner(), devicekit.get_device("cpu"), limits)
    params = SamplingParams(max_new_tokens=1, temperature=0.0)

    def run(identity: str, tokens: list[int], priority: int) -> int:
        request = Request(identity, np.array(tokens, np.int32), params, priority=priority)
        one.add(request)
        while one.state.requests:
            one.step()
        return request.cached_tokens

    kept, raised, other = ([start, *range(12)] for start in (20, 21, 22))
    run("kept", kept, 5)
    run("first", raised, 0)
    run("again", raised, 7)  # adds nothing to the cache, but is why it should stay
    run("other", other, 0)
    run("large", [23, *range(20)], 0)  # takes the place of the least important
    assert run("look", raised, 0) == 12
    assert run("look at kept", kept, 0) == 12
    assert run("look at other", other, 0) < 12


def test_an_eviction_policy_that_does_not_exist_is_refused() -> None:
    limits = SchedulerLimits(num_pages=12, page_size=4, eviction="oldest")
    with pytest.raises(UnknownPolicy, match=r"'oldest': choose one of .*priority"):
        Scheduler(OneTokenRunner(), devicekit.get_device("cpu"), limits)
