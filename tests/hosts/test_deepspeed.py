"""DeepSpeed's accelerator, through DeepSpeed's own call."""

from __future__ import annotations

import pytest

from tests.hosts.conftest import Process, installed

SERVED = """
import torch
import devicekit, devicekit_deepspeed
accelerator = devicekit_deepspeed.activate()
from deepspeed.accelerator import get_accelerator
assert get_accelerator() is accelerator
device = devicekit.get_device()
assert accelerator.device_name() == device.torch_device.type
assert accelerator.total_memory() == device.memory_info().total
assert torch.float32 in accelerator.supported_dtypes()
accelerator.manual_seed_all(7)
state = accelerator.get_rng_state()
first = torch.rand(3, device=accelerator.current_device_name())
accelerator.set_rng_state(state)
assert torch.equal(first.cpu(), torch.rand(3, device=accelerator.current_device_name()).cpu())
assert accelerator.on_accelerator(first)
accelerator.synchronize()
accelerator.empty_cache()
assert (accelerator.Stream is None) == (not device.supports("create_stream"))
if accelerator.Stream is not None:
    with accelerator.stream(accelerator.Stream()):
        accelerator.FloatTensor([1.0])
assert accelerator.is_current_stream_capturing() is False
if (graph := accelerator.create_graph()) is not None:
    with accelerator.capture_to_graph(graph):
        assert accelerator.is_current_stream_capturing() is True
try:
    print("allocated", accelerator.memory_allocated())
except NotImplementedError as error:
    print("unknown", error)
"""

TRAINED = """
import os, torch
import devicekit_deepspeed
accelerator = devicekit_deepspeed.activate()
import deepspeed
os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
torch.manual_seed(0)
where = accelerator.current_device_name()
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
engine, *_ = deepspeed.initialize(
    model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    config={
        "train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": int(os.environ["STAGE"])},
        "zero_allow_untested_optimizer": True,
    },
)
x = torch.randn(4, 8).to(where)
y = x.sum(1, keepdim=True).tanh()
losses = []
for _ in range(20):
    loss = torch.nn.functional.mse_loss(engine(x), y)
    engine.backward(loss)
    engine.step()
    losses.append(loss.item())
assert deepspeed.accelerator.get_accelerator() is accelerator
print(losses[-1] < losses[0] / 20)
"""

REFUSED = """
import devicekit_deepspeed
try:
    devicekit_deepspeed.activate()
except RuntimeError as error:
    print(error)
"""


@installed("deepspeed")
def test_deepspeed_is_served_and_told_what_is_unknown(run: Process) -> None:
    said = run(SERVED)
    if run.backend == "cpu":
        assert said.startswith("unknown")
        assert "memory_stats" in said
    else:
        assert said.startswith("allocated ")


@installed("deepspeed")
def test_deepspeeds_own_variable_is_not_overruled(run: Process) -> None:
    assert "DS_ACCELERATOR=cpu" in run(REFUSED, DS_ACCELERATOR="cpu")


@installed("deepspeed")
@pytest.mark.parametrize("stage", [0, 1])
def test_deepspeed_trains_a_model(stage: int) -> None:
    # On the host's processor alone: DeepSpeed keeps weak references to parameters before it moves them, and torch
    # does not move those of a tensor subclass, as the simulated accelerator's are.
    assert Process("cpu")(TRAINED, STAGE=str(stage)) == "True"


@installed("deepspeed")
def test_a_device_without_operators_of_deepspeeds_has_no_builder_for_any() -> None:
    code = """
import devicekit_deepspeed
accelerator = devicekit_deepspeed.activate()
print(accelerator.create_op_builder("ShareMemCommBuilder"), accelerator.get_op_builder("FusedAdamBuilder"))
"""
    assert Process("sim")(code) == "None None"
