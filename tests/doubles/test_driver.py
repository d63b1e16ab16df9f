"""A double's allocator and streams do what torch's own do, where what is judged over them rests on it."""

from __future__ import annotations

import pytest

from tests.doubles.driver import MIB, SEGMENT, Card
from tests.doubles.vendors import FLAVOURS, build


def test_a_limit_below_what_is_cached_leaves_the_cache_to_use() -> None:
    card = Card()
    first = card.take(512 * MIB)
    assert first is not None
    card.give_back(first)
    card.fraction = 0.25
    assert card.take(64 * MIB) is not None
    assert card.counters["num_alloc_retries"] == 0


def test_the_cache_goes_back_to_the_driver_before_memory_is_out() -> None:
    card = Card()
    first = card.take(512 * MIB)
    assert first is not None
    card.give_back(first)
    card.fraction = 0.25
    assert card.take(768 * MIB) is None
    assert card.reserved == 0
    assert (card.counters["num_alloc_retries"], card.counters["num_ooms"]) == (1, 1)
    assert card.take(card.total // 4) is not None
    card.fraction = 1.0
    assert card.take(card.free // SEGMENT * SEGMENT) is not None


@pytest.mark.parametrize("vendor", FLAVOURS)
@pytest.mark.parametrize("chosen", [0, 1])
@pytest.mark.parametrize("before", [0, 1])
def test_after_a_block_of_a_stream_the_device_and_every_stream_are_as_before(
    vendor: str, before: int, chosen: int
) -> None:
    double = build(FLAVOURS[vendor](None))
    driver, module = double.driver, double.module
    side, streams = module.Stream(0), [module.current_stream(0), module.current_stream(1)]
    driver.current = before
    with module.stream(side):
        assert (driver.current, module.current_stream(0)) == (0, side)
        driver.current = chosen
    assert driver.current == before
    assert [module.current_stream(0), module.current_stream(1)] == streams
