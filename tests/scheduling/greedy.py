"""Requests that go on to their length, and what they generated."""

from __future__ import annotations

import numpy as np

from devicekit.scheduling.request import FinishKind, Request, SamplingParams
from devicekit.scheduling.scheduler import Scheduler


def request(name: str, prompt: list[int], count: int) -> Request:
    return Request(name, np.array(prompt), SamplingParams(max_new_tokens=count, temperature=0.0))


def finish_all(one: Scheduler) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    while one.state.requests:
        for output in one.step().outputs:
            assert output.finish is not None
            assert output.finish.kind is FinishKind.LENGTH, output.finish.message
            found[output.id] = output.tokens
    return found
