"""DeepSpeed's accelerator, through DeepSpeed's own call."""

from __future__ import annotations

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
