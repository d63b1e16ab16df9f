"""Another process maps the very bytes of an exported tensor."""

from __future__ import annotations

import pickle
import subprocess

import pytest
import torch

from devicekit.testing.ipc import export_tensor, import_tensor
from tools.warm import Warm

pytestmark = pytest.mark.usefixtures("machine")

CHILD = """
import pickle, sys, torch
from devicekit.testing import enable
from devicekit.testing.ipc import import_tensor
enable()
tensor = import_tensor(pickle.load(sys.stdin.buffer))
assert tensor.device == torch.device("sim", 1) and tensor.tolist() == [[2.0, 4.0], [3.0, 5.0]], tensor
assert torch.sim.memory_allocated(1) == 0
tensor[0, 1] = 40.0
"""


def test_a_child_process_reads_and_writes_the_same_bytes(warm: Warm) -> None:
    base = torch.arange(6.0, device="sim:1")
    handle = export_tensor(base[2:].view(2, 2).t())
    subprocess.run([*warm.python, "-c", CHILD], input=pickle.dumps(handle), check=True, timeout=300)
    assert base.tolist() == [0.0, 1.0, 2.0, 3.0, 40.0, 5.0]


def test_exporting_waits_for_the_bytes_to_be_there() -> None:
    tensor = torch.zeros(4, device="sim")
    tensor.copy_(torch.ones(4).pin_memory(), non_blocking=True)
    handle = export_tensor(tensor)
    torch.sim.set_stream(torch.sim.Stream())
    assert import_tensor(handle).tolist() == [1.0] * 4


def test_an_imported_tensor_costs_the_importer_nothing() -> None:
    tensor = torch.ones(1 << 20, device="sim")
    allocated = torch.sim.memory_allocated()
    imported = import_tensor(export_tensor(tensor))
    imported.fill_(2.0)
    assert tensor[0].item() == 2.0
    assert torch.sim.memory_allocated() == allocated


def test_only_tensors_of_the_device_and_real_handles_are_taken() -> None:
    with pytest.raises(TypeError, match="cpu"):
        export_tensor(torch.ones(2))
    with pytest.raises(TypeError, match="handle"):
        import_tensor(b"not one")
