"""Page-locked memory is judged by the bytes of a tensor, where torch looks at the byte its storage begins with."""

from __future__ import annotations

import random

import pytest
import torch

from devicekit.torchlike import pinned


class Host:
    """What a vendor's runtime locked, seen through torch's functions as torch has them."""

    def __init__(self) -> None:
        self.locked: list[torch.Tensor] = []

    def has(self, address: int) -> bool:
        return any(one.data_ptr() <= address < one.data_ptr() + one.nbytes for one in self.locked)

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == "cpu" and self.has(tensor.untyped_storage().data_ptr())

    def pin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "cpu":
            raise RuntimeError("cannot pin it")
        if self.is_pinned(tensor):
            return tensor
        self.locked.append(tensor.clone())
        return self.locked[-1]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    found = Host()
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: found.is_pinned(tensor))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: found.pin_memory(tensor))
    return found


def test_a_tensor_is_pinned_by_its_own_first_and_last_byte(host: Host) -> None:
    seed = 5
    draw = random.Random(seed)
    whole = torch.arange(36, dtype=torch.int16)
    for number in range(200):
        begin, end = sorted(draw.sample(range(37), 2))
        host.locked = [whole[begin:end]]
        first, last = sorted(draw.sample(range(37), 2))
        part = whole[first:last:2] if number % 2 else whole[first:last]
        bytes_of = range(first, last, 2 if number % 2 else 1)
        expected = all(begin <= at < end for at in (bytes_of[0], bytes_of[-1]))
        assert pinned.is_pinned(part) is expected, (
            f"seed {seed}: {begin}-{end} is locked, {bytes_of} is asked"
        )
        same = pinned.pin(part)
        assert (same is part) is expected
        assert pinned.is_pinned(same)
        assert torch.equal(same, part)


def test_transposed_and_stretched_tensors_end_where_their_last_element_does(host: Host) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    host.locked = [whole[:2]]
    assert pinned.is_pinned(whole[:2].t())
    assert not pinned.is_pinned(whole.t())
    assert pinned.is_pinned(whole[0, :1].expand(100))


def test_what_has_no_memory_on_the_host_is_torchs_to_judge(host: Host) -> None:
    assert not pinned.is_pinned(torch.empty(0))
    assert pinned.pin(torch.empty(0)).numel() == 0
    assert not pinned.is_pinned(torch.empty(2, device="meta"))
    with pytest.raises(RuntimeError):
        pinned.pin(torch.empty(2, device="meta"))
