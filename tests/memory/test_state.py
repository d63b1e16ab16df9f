"""The state pool: slots conserve, start at zero, and can be copied to others."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import devicekit
from devicekit.memory.audit import audit
from devicekit.memory.errors import DoubleFree, ForeignPage, MemoryReleased
from devicekit.memory.state import StateLayout, StatePool, StateTensor

LAYOUT = StateLayout(
    (
        StateTensor(0, "conv", (4, 3), torch.float32),
        StateTensor(0, "recurrent", (2, 2, 2), torch.bfloat16),
        StateTensor(2, "conv", (4, 3), torch.float32),
    )
)


def pool(slots: int = 4, *, checked: bool = True) -> StatePool:
    return StatePool(devicekit.get_device("cpu"), LAYOUT, slots, checked=checked)


def fill(states: StatePool, slot: int, value: float) -> None:
    for one in LAYOUT.tensors:
        states.write(
            one.layer, one.name, torch.tensor([slot]), torch.full((1, *one.shape), value, dtype=one.dtype)
        )


def values(states: StatePool, slot: int) -> set[float]:
    read = [states.read(one.layer, one.name, torch.tensor([slot])) for one in LAYOUT.tensors]
    return {value for tensor in read for value in tensor.float().flatten().tolist()}


def test_bytes_count_every_tensor_and_the_padding_slot():
    assert LAYOUT.bytes_per_slot == 48 + 16 + 48
    states = pool(4)
    tensors = [states.tensor(one.layer, one.name) for one in LAYOUT.tensors]
    assert states.nbytes == sum(tensor.nbytes for tensor in tensors) == 5 * LAYOUT.bytes_per_slot


def test_a_slot_is_zero_when_it_is_handed_out_whatever_was_left_in_it():
    states = pool(1)
    slot = states.take()
    fill(states, slot, 7.0)
    states.give(slot)
    assert states.take() == slot
    assert values(states, slot) == {0.0}


def test_the_padding_slot_is_never_handed_out_and_an_empty_pool_says_so():
    states = pool(3)
    assert sorted(states.take() for _ in range(3)) == [1, 2, 3]
    assert states.take() == 0
    assert states.available == 0


def test_a_write_reaches_its_slot_alone():
    states = pool(3)
    slots = [states.take() for _ in range(3)]
    fill(states, slots[1], 5.0)
    assert [values(states, slot) for slot in (0, *slots)] == [{0.0}, {0.0}, {5.0}, {0.0}]


def test_a_copied_state_outlives_its_slot_and_goes_into_any_other():
    states = StatePool(devicekit.get_device("cpu"), LAYOUT, 2, snapshots=2, checked=True)
    first, second = states.take(), states.take()
    fill(states, first, 3.0)
    states.copy(torch.tensor([first, second]), torch.tensor([4, 3]))
    fill(states, first, 9.0)
    states.give(first)
    assert states.take() == first
    states.copy(torch.tensor([4]), torch.tensor([second]))
    assert [values(states, slot) for slot in (first, second, 3, 4)] == [{0.0}, {3.0}, {0.0}, {3.0}]


def test_places_for_snapshots_are_allocated_and_never_handed_out():
    states = StatePool(devicekit.get_device("cpu"), LAYOUT, 2, snapshots=3)
    assert [states.take() for _ in range(3)] == [1, 2, 0]
    assert states.nbytes == (2 + 1 + 3) * LAYOUT.bytes_per_slot
    assert sum(states.tensor(one.layer, one.name).nbytes for one in LAYOUT.tensors) == states.nbytes


def test_slots_given_back_twice_or_never_handed_out_are_named():
    states = pool(2)
    slot = states.take()
    states.give(slot)
    with pytest.raises(DoubleFree):
        states.give(slot)
    with pytest.raises(ForeignPage):
        states.give(9)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_a_state_without_elements_is_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="at least 1"):
        StateTensor(0, "conv", shape, torch.float32)


def test_a_pool_without_slots_or_tensors_is_refused():
    with pytest.raises(ValueError, match="num_slots"):
        pool(0)
    with pytest.raises(ValueError, match="needs tensors"):
        StatePool(devicekit.get_device("cpu"), StateLayout(()), 1)
    with pytest.raises(ValueError, match="snapshots"):
        StatePool(devicekit.get_device("cpu"), LAYOUT, 1, snapshots=-1)
    with pytest.raises(ValueError, match="one name"):
        StateLayout(LAYOUT.tensors[:1] * 2)


@settings(max_examples=20)
@given(slots=st.integers(1, 40), seed=st.integers(0, 1 << 16))
def test_random_use_conserves_and_keeps_every_holders_values(slots: int, seed: int):
    rng = random.Random(seed)
    states = pool(slots)
    held: dict[int, float] = {}
    for _ in range(120):
        if rng.random() < 0.5:
            slot = states.take()
            assert bool(slot) == (len(held) < slots)
            if slot:
                assert values(states, slot) == {0.0}
                held[slot] = float(rng.randrange(1, 100))
                fill(states, slot, held[slot])
        elif held:
            slot = rng.choice(sorted(held))
            assert values(states, slot) == {held.pop(slot)}
            states.give(slot)
        assert audit(states.slots, owned=len(held)).balanced


def test_a_hundred_thousand_random_operations_conserve():
    rng = random.Random(5)
    states = pool(64)
    held: list[int] = []
    for at in range(100_000):
        if rng.random() < 0.5:
            slot = states.take()
            assert bool(slot) == (len(held) < 64)
            held += [slot] * bool(slot)
        elif held:
            states.give(held.pop(rng.randrange(len(held))))
        if at % 1000 == 0:
            assert audit(states.slots, owned=np.array(held, np.int32)).balanced
    assert audit(states.slots, owned=np.array(held, np.int32)).balanced


def test_released_memory_comes_back_as_zeros_and_using_it_meanwhile_is_an_error():
    states = pool(2)
    slot = states.take()
    fill(states, slot, 4.0)
    assert states.release() == states.nbytes
    for use in (
        lambda: states.copy(torch.tensor([slot]), torch.tensor([2])),
        lambda: states.clear(torch.tensor([1])),
        lambda: values(states, 1),
    ):
        with pytest.raises(MemoryReleased):
            use()
    assert states.resume() == states.nbytes
    assert values(states, slot) == {0.0}
    assert states.available == 1
