"""Weights by IPC handle, from this process and from another one."""

from __future__ import annotations

import pickle
import subprocess

import pytest
import torch

from devicekit.contract.errors import UnsupportedHook
from devicekit.device import Device
from devicekit.scheduling.messages import Refusal, UpdateReply
from devicekit.weights.operations import UpdateWeightsFromIPC
from tests.hash_runner import make_weights, salt_of
from tests.programs import Program
from tests.scheduling.rig import Rig
from tools.warm import Warm

NEW = make_weights(5)

TRAINER = """
import pickle, sys
from devicekit import get_device
from tests.hash_runner import make_weights
device, weights = get_device("cpu"), make_weights(5)
handles = {name: device.export_ipc(one) for name, one in weights.items()}
sys.stdout.write(pickle.dumps(handles).hex() + "\\n")
sys.stdout.flush()
sys.stdin.readline()
"""


def test_a_trainer_in_another_process_hands_over_handles(rig: Rig, warm: Warm) -> None:
    with Program([*warm.python, "-c", TRAINER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as trainer:
        assert trainer.stdout is not None
        handles = pickle.loads(bytes.fromhex(trainer.stdout.readline()))
        reply = rig.do(UpdateWeightsFromIPC("u", handles=handles), UpdateReply)
        trainer.communicate("done\n", timeout=60)
    assert reply.success
    assert reply.tensors == 3
    assert rig.salt == salt_of(NEW)


def test_a_handle_to_what_is_gone_is_refused_and_nothing_was_written(rig: Rig, device: Device) -> None:
    kept = torch.zeros(6)
    handles = {
        "layers.0.bias": device.export_ipc(kept),
        "head.weight": device.export_ipc(torch.zeros(4, 4)),  # nobody keeps this one
    }
    before = rig.snapshot()
    reply = rig.do(UpdateWeightsFromIPC("u", handles=handles), UpdateReply)
    assert reply.refusal is Refusal.FAILED
    assert rig.snapshot() == before


def test_no_handle_is_invalid(rig: Rig) -> None:
    assert rig.do(UpdateWeightsFromIPC("u"), UpdateReply).refusal is Refusal.INVALID


def test_a_backend_without_ipc_says_so(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*hooks: str) -> None:
        raise UnsupportedHook("this backend lacks import_ipc")

    monkeypatch.setattr(type(rig.weights.store.device), "require", lambda self, *hooks: lacking(*hooks))
    assert rig.do(UpdateWeightsFromIPC("u", handles={"a": 1}), UpdateReply).refusal is Refusal.UNSUPPORTED
