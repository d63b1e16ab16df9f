"""Recurrent layers: states follow their requests, and a pass that failed leaves them as they were."""

from __future__ import annotations

import pytest
import torch

from devicekit.memory.kv import KVPool
from devicekit.memory.state import StateLayout, StatePool, StateTensor
from devicekit.runners.state_layers import LayerStates
from devicekit.runners.transformers_runner import TransformersRunner

PROMPTS = [[5, 9, 300, 44, 7], list(range(40, 75)), [1]]


def states_of(pool: StatePool) -> list[torch.Tensor]:
    return [pool.tensor(one.layer, one.name).clone() for one in pool.layout.tensors]


def test_what_a_layer_keeps_is_found_by_running_it(example, device):
    runner = TransformersRunner.load(example("lfm2"), device)
    assert runner.layout.num_layers == 2
    assert runner.states == StateLayout(
        (StateTensor(0, "conv.0", (64, 3), torch.float32), StateTensor(2, "conv.0", (64, 3), torch.float32))
    )
    runner = TransformersRunner.load(example("qwen3_next"), device)
    assert runner.layout.num_layers == 1
    kept = [(one.layer, one.name, one.shape) for one in runner.states.tensors]
    assert kept == [
        (layer, *state)
        for layer in (0, 1, 3)
        for state in (("conv.0", (128, 4)), ("recurrent.0", (4, 16, 16)))
    ]


def test_models_without_recurrent_layers_keep_no_state(example, device):
    assert TransformersRunner.load(example("llama"), device).states is None


@pytest.mark.parametrize("architecture", ["lfm2", "qwen3_next"])
def test_a_pass_that_failed_can_be_run_again(example, driver, architecture):
    """Out of memory is answered by a second try, which must not find half of the first one's states."""
    drive = driver(example(architecture))
    undisturbed = driver(example(architecture)).generate(PROMPTS, 8)
    sequences = [drive.add(prompt) for prompt in PROMPTS]
    last = drive.runner.model.model.layers[-1]
    failures = 0

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    while any(len(one.generated) < 8 for one in sequences):
        parts = [(one, len(one.tokens) - one.done) for one in sequences]
        before = states_of(drive.states)
        hook = last.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            drive.runner.step(drive.batch(parts))
        hook.remove()
        failures += 1
        if sequences[0].done:  # the first pass clears the slots
            for old, new in zip(before, states_of(drive.states), strict=True):
                assert torch.equal(old.nan_to_num(), new.nan_to_num())
        drive.step(parts)
    assert failures == 8
    assert [one.generated for one in sequences] == undisturbed


def test_a_state_pool_must_be_the_models(example, device):
    runner = TransformersRunner.load(example("lfm2"), device)
    pool = KVPool(device, runner.layout, 4, 4)
    with pytest.raises(ValueError, match="does not fit"):
        runner.bind(pool)
    other = StateLayout((StateTensor(0, "conv.0", (8, 3), torch.float32),))
    with pytest.raises(ValueError, match="does not fit"):
        runner.bind(pool, StatePool(device, other, 2))


def test_a_batch_must_say_whose_state_is_where(example, driver):
    drive = driver(example("lfm2"))
    batch = drive.batch([(drive.add([1, 2]), 2)])
    batch.state_slots = None
    with pytest.raises(ValueError, match="names no state slots"):
        drive.runner.step(batch)


def test_states_are_found_by_layers_of_every_release_of_transformers():
    states = LayerStates({})
    states.update_conv_state(torch.ones(1, 2, 3), 5, conv_kernel_size=3)
    states.update_recurrent_state(torch.zeros(1, 4), 5)
    for conv in (states.get_conv_state(5), states.layers[5].conv_states[0]):
        assert torch.equal(conv, torch.ones(1, 2, 3))
    for recurrent in (states.get_recurrent_state(5), states.layers[5].recurrent_states[0]):
        assert torch.equal(recurrent, torch.zeros(1, 4))
    assert not states.layers[5].record_past
