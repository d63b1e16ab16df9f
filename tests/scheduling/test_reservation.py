"""The share of remaining output that admission sets room aside for: where it starts, sinks to, and rises to."""

from __future__ import annotations

import pytest

from devicekit.scheduling.reservation import DECAY_STEPS, FLOOR, LOOK_AHEAD, START, NewTokenRatio


@pytest.mark.parametrize("conservativeness", [0.0, 0.3, 1.0, 1.4, 5.0])
def test_it_starts_as_is_set_and_sinks_evenly_to_its_floor(conservativeness: float) -> None:
    ratio = NewTokenRatio(conservativeness)
    start = min(1.0, START * conservativeness)
    assert ratio.value == pytest.approx(start)
    steps = [ratio.value]
    for _ in range(DECAY_STEPS + 5):
        ratio.decay()
        steps.append(ratio.value)
    assert steps[DECAY_STEPS // 2] == pytest.approx((start + start * FLOOR) / 2)
    assert steps[DECAY_STEPS:] == pytest.approx([start * FLOOR] * 6)
    ratio.reset()
    assert ratio.value == pytest.approx(start)


@pytest.mark.parametrize(
    ("decoded", "remaining", "requests"),
    [(0, 0, 1), (0, 10, 0), (5, 4, 0), (10, 89, 1), (500, 500, 3), (1, 9, 2)],
)
def test_after_a_retraction_it_has_room_for_what_was_made_and_some_steps_more(
    decoded: int, remaining: int, requests: int
) -> None:
    ratio = NewTokenRatio()
    ratio.retracted(decoded, remaining, requests)
    assert ratio.value == pytest.approx(
        min(1.0, (decoded + LOOK_AHEAD * requests) / (decoded + remaining + 1))
    )
