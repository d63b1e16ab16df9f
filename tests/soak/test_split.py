"""A minute of random runs over models that two ranks hold together, whatever happens to either."""

from __future__ import annotations

import pytest

from tests.seeds import drawn_seed
from tests.soak.split import run_split

SEED = drawn_seed("SPLIT_SOAK_SEED")


@pytest.mark.thorough
def test_ranks_that_hold_a_model_together_say_what_one_process_does() -> None:
    print(f"SPLIT_SOAK_SEED={SEED}")
    counts = run_split(2, 60.0, SEED)
    assert not counts.violations
    assert counts.tokens_compared > 0 < counts.checksums_compared
