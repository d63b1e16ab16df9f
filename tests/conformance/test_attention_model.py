"""The engine profile's model: a sound device gives the host's tokens, and a wrong one does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from devicekit.device import get_device
from devicekit_conformance.attention_model import Weights, token_faults


def test_a_sound_device_gives_the_hosts_tokens() -> None:
    assert list(token_faults(get_device("cpu"))) == []


def test_the_hosts_own_choice_is_right_and_few_others_are() -> None:
    weights = Weights(11)
    right = [token for token in range(251) if weights.is_right([5, 9, 33], token)]
    assert int(weights.logits([5, 9, 33]).argmax()) in right
    assert len(right) < 5


Attention = Callable[..., torch.Tensor]
_REAL: Attention = functional.scaled_dot_product_attention


def unwritten(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **rest: torch.Tensor
) -> torch.Tensor:
    return torch.full_like(query, 0.37)


def shifted(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor
) -> torch.Tensor:
    return _REAL(query, key, value, attn_mask=attn_mask.roll(1, -1))


def stale(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor
) -> torch.Tensor:
    return _REAL(query, key, value.roll(1, -2), attn_mask=attn_mask)


@pytest.mark.parametrize("wrong", [unwritten, shifted, stale])
def test_wrong_attention_shows_in_the_tokens(wrong: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "scaled_dot_product_attention", wrong)
    assert list(token_faults(get_device("cpu")))
