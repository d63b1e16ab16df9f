from __future__ import annotations

import numpy as np
import pytest
import torch

from devicekit.runners.readback import read_back
from devicekit.runners.sampling import adjust, choose, log_probabilities, uniforms
from devicekit.scheduling.batch import LogitAdjustments, SamplingArrays

DRAWS = 4000
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0])


def arrays(count: int, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=None, position=0):
    return SamplingArrays(
        temperature=np.full(count, temperature, np.float32),
        top_k=np.full(count, top_k, np.int32),
        top_p=np.full(count, top_p, np.float32),
        min_p=np.full(count, min_p, np.float32),
        seed=np.arange(count, dtype=np.int64) if seed is None else np.full(count, seed, np.int64),
        position=np.full(count, position, np.int64),
    )


def join(*parts: SamplingArrays) -> SamplingArrays:
    names = SamplingArrays.__slots__
    return SamplingArrays(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})


def expected(*, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> np.ndarray:
    """The same filters, one token at a time."""
    weights = np.exp(LOGITS.double().numpy() / temperature)
    weights /= weights.sum()
    order = np.argsort(-weights)
    kept = list(order[:top_k] if top_k else order)
    total, passed = weights[kept].sum(), 0.0
    nucleus = []
    for token in kept:
        if passed < top_p * total:
            nucleus.append(token)
        passed += weights[token]
    final = [token for token in nucleus if weights[token] >= min_p * weights.max()]
    answer = np.zeros(len(weights))
    answer[final] = weights[final] / weights[final].sum()
    return answer


def assert_follows(tokens: np.ndarray, probabilities: np.ndarray) -> None:
    counts = np.bincount(tokens, minlength=len(probabilities))
    possible = probabilities > 0
    assert not counts[~possible].any(), "a token that was filtered out was drawn"
    wanted = probabilities[possible] * len(tokens)
    chi_square = ((counts[possible] - wanted) ** 2 / wanted).sum()
    # The 99.9th percentiles of chi-square with 0 to 5 degrees of freedom; seeds are fixed, so this cannot flake.
    assert chi_square <= (1e-9, 10.83, 13.82, 16.27, 18.47, 20.52)[possible.sum() - 1]


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 100},
        {"top_p": 0.6},
        {"top_p": 0.95},
        {"top_p": 1e-9},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"temperature": 2.0, "top_k": 4, "top_p": 0.8, "min_p": 0.3},
    ],
)
@pytest.mark.parametrize("vary", ["seed", "position"])
def test_draws_follow_the_filtered_distribution(setting, vary):
    sampling = arrays(DRAWS, **setting)
    if vary == "position":
        sampling.seed, sampling.position = sampling.position, sampling.seed
    tokens = choose(LOGITS.expand(DRAWS, -1), sampling).numpy()
    assert_follows(tokens, expected(**setting))


def test_a_draw_does_not_depend_on_its_company():
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    mixed = join(
        arrays(10, temperature=0.7),
        arrays(10, top_k=5),
        arrays(10, top_p=0.5, position=3),
        arrays(10, temperature=0.0),
        arrays(10, min_p=0.1, seed=77),
    )
    together = choose(logits, mixed)
    for i in torch.randperm(50, generator=torch.Generator().manual_seed(1)).tolist():
        one = SamplingArrays(**{n: getattr(mixed, n)[i : i + 1] for n in SamplingArrays.__slots__})
        assert choose(logits[i : i + 1], one).item() == together[i]


def test_seed_and_position_both_matter():
    flat = torch.zeros(64, 10_000)
    by_seed = choose(flat, arrays(64)).unique()
    by_position = arrays(64, seed=5)
    by_position.position = np.arange(64)
    assert len(by_seed) > 60
    assert len(choose(flat, by_position).unique()) > 60


def test_temperature_zero_is_greedy_beside_rows_that_sample():
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(2))
    sampling = join(arrays(10, temperature=0.0), arrays(10, temperature=5.0))
    tokens = choose(logits, sampling)
    assert torch.equal(tokens[:10], logits[:10].argmax(-1))
    assert not torch.equal(tokens[10:], logits[10:].argmax(-1))
    assert torch.equal(choose(logits, None), logits.argmax(-1))


def test_uniforms_fill_the_interval_and_never_reach_one():
    grid = np.arange(-(10**5), 10**5, dtype=np.int64)
    values = uniforms(grid, np.zeros_like(grid))
    assert values.dtype == np.float32
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert ((counts - 10**4) ** 2 / 10**4).sum() < 43.8  # 99.9th percentile, 19 degrees of freedom


def test_log_probabilities_are_those_before_temperature():
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(3)) * 3
    tokens = torch.tensor([0, 29, 7, 7])
    measured = log_probabilities(logits, tokens, 5)
    found = measured.taken_from(read_back(measured.tensors))
    exact = torch.log_softmax(logits.double(), -1)
    np.testing.assert_allclose(found.chosen, exact[range(4), tokens], rtol=1e-5)
    np.testing.assert_array_equal(found.top_ids, exact.topk(5).indices)
    np.testing.assert_allclose(found.top_values, exact.topk(5).values, rtol=1e-5)
    assert (found.chosen.dtype, found.top_ids.dtype) == (np.float32, np.int32)


def test_no_top_log_probabilities_and_more_than_there_are():
    assert log_probabilities(LOGITS[None], torch.tensor([1]), 0).top_ids.shape == (1, 0)
    assert log_probabilities(LOGITS[None], torch.tensor([1]), 99).top_ids.shape == (1, 6)


def test_nothing_wanted_gives_nothing():
    assert choose(torch.zeros(0, 10), None).shape == (0,)
    assert choose(torch.zeros(0, 10), arrays(0, top_k=3)).shape == (0,)


def test_adjustments_reach_their_logits_and_no_others():
    logits = torch.stack([LOGITS, LOGITS])
    wishes = LogitAdjustments(
        rows=np.array([0, 0, 0, 1], np.int64),
        tokens=np.array([0, 4, 2, 1], np.int64),
        scales=np.array([2.0, 2.0, 1.0, 4.0], np.float32),
        offsets=np.array([0.0, 0.5, -np.inf, -1.0], np.float32),
    )
    before = logits.clone()
    adjusted = adjust(logits, wishes)
    assert torch.equal(logits, before)
    assert adjusted[0].tolist() == [1.0, 1.0, -np.inf, 0.0, -1.5, -2.0]
    assert adjusted[1].tolist() == [2.0, -0.75, 0.5, 0.0, -1.0, -2.0]
    assert choose(adjust(LOGITS.expand(2, -1), wishes), arrays(2, temperature=0)).tolist() == [0, 0]


@pytest.mark.parametrize("temperature", [1e-5, 1e-6, 1e-20, 1e-40, 1e-300])
def test_however_cold_the_likeliest_token_is_drawn(temperature):
    logits = torch.stack([LOGITS * 100, LOGITS.flip(0)])
    assert choose(logits, arrays(2, temperature=temperature)).tolist() == [0, 5]
