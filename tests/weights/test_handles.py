"""Handles of shared tensors as JSON: they open the tensor, and nothing that comes in them is ever called."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.multiprocessing import reductions

from devicekit.contract.errors import HookError
from devicekit.device import Device
from devicekit.scheduling.errors import InvalidOperation
from devicekit.torchlike.ipc import SharedTensor
from devicekit.weights.handles import handle_from_json, handle_to_json, import_json
from devicekit.weights.pickled import read_message


def _told(device: Device, tensor: torch.Tensor) -> dict[str, object]:
    return json.loads(json.dumps(handle_to_json(device.export_ipc(tensor))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_a_handle_that_went_through_json_opens_the_tensor(
    device: Device, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = torch.randint(0, 2, shape).to(dtype)
    found = import_json(device, _told(device, tensor))
    assert (found.dtype, tuple(found.shape)) == (dtype, shape)
    assert torch.equal(found, tensor)


def test_parts_of_a_tensor_keep_their_place_and_strides(device: Device) -> None:
    whole = torch.arange(24.0).view(4, 6)
    device.export_ipc(whole)  # from now on in shared memory, and so are its parts
    assert torch.equal(import_json(device, _told(device, whole[1:, 2:4].t())), whole[1:, 2:4].t())


BROKEN = {
    "nothing": lambda told: None,
    "a text": lambda told: "handle",
    "a field missing": lambda told: {name: value for name, value in told.items() if name != "offset"},
    "a field too many": lambda told: {**told, "rebuild": "os.system"},
    "a number for a name": lambda told: {**told, "name": 7},
    "a text for a number": lambda told: {**told, "offset": "0"},
    "no number": lambda told: {**told, "offset": True},
    "an enormous shape": lambda told: {**told, "shape": [10**30]},
    "a shape of texts": lambda told: {**told, "shape": ["1"]},
    "no type": lambda told: {**told, "dtype": "nn"},
    "a type that is none": lambda told: {**told, "dtype": ["float32"]},
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_handle_of_this_device_is_refused(device: Device, name: str) -> None:
    tensor = torch.zeros(3)
    with pytest.raises(InvalidOperation):
        import_json(device, BROKEN[name](_told(device, tensor)))


@pytest.mark.parametrize(
    "lie",
    [
        {"name": "nowhere"},
        {"name": "../../etc/passwd"},
        {"name": "a\0b"},
        {"nbytes": 1 << 40},
        {"nbytes": -1},
        {"offset": 1 << 40},
        {"offset": -5},
        {"shape": [1 << 40], "stride": [1]},
        {"shape": [-1]},
        {"stride": [-1]},
        {"stride": [1 << 40]},
    ],
    ids=str,
)
def test_memory_that_is_not_there_is_an_error_and_never_read(device: Device, lie: dict[str, object]) -> None:
    tensor = torch.zeros(3)
    with pytest.raises(HookError):
        import_json(device, {**_told(device, tensor), **lie}).sum()


def _reduced(handle: bytes) -> tuple[object, ...]:
    """What torch's reductions make of a tensor on a device whose drivers share memory by handles of bytes."""
    kinds = torch.Tensor, torch.Size([4]), (1,), 0, torch.storage.UntypedStorage, torch.uint8
    return (*kinds, 0, handle, 4, 0, False, b"counter", 0, b"event", True)


def test_handles_of_torchs_own_reductions_are_read_from_json_and_from_pickles() -> None:
    own = SharedTensor("cuda", reductions.rebuild_cuda_tensor, _reduced(b"own"))
    other = SharedTensor("cuda", reductions.rebuild_cuda_tensor, _reduced(b"\0other"))
    assert handle_from_json(json.loads(json.dumps(handle_to_json(other))), own) == other
    name, arguments = read_message(pickle.dumps((reductions.rebuild_cuda_tensor, _reduced(b"\0other"))))
    told = {"device_type": "cuda", "rebuild": name, "arguments": handle_to_json(arguments)}
    assert handle_from_json(told, own) == other
    with pytest.raises(InvalidOperation, match="rebuild_cuda_tensor"):
        handle_from_json({**told, "rebuild": "torch.multiprocessing.reductions.rebuild_xpu_tensor"}, own)
    with pytest.raises(InvalidOperation, match=r"arguments\[7\] must be bytes"):
        handle_from_json({**told, "arguments": handle_to_json(_reduced("text"))}, own)  # type: ignore[arg-type]


JUNK: tuple[object, ...] = (
    None,
    True,
    1.5,
    "",
    "x",
    "é",
    "AA=A",
    "!!!!",
    "A A=",
    [],
    [None],
    {},
    {"base64": 7},
    2**62,
    -(2**62),
)


def _places(document: object, place: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    yield place
    if isinstance(document, dict | list):
        for name, value in document.items() if isinstance(document, dict) else enumerate(document):
            yield from _places(value, (*place, name))


def _with(document: Any, place: tuple[object, ...], value: object) -> object:
    if not place:
        return value
    copy = document.copy()
    copy[place[0]] = _with(copy[place[0]], place[1:], value)
    return copy


def test_at_each_place_of_a_handle_only_what_may_be_there_is_taken() -> None:
    own = SharedTensor("cuda", reductions.rebuild_cuda_tensor, _reduced(b"own"))
    told = json.loads(json.dumps(handle_to_json(own)))
    tried = 0
    for place in _places(told):
        for junk in JUNK:
            wrong = _with(told, place, junk)
            if wrong == told:
                continue
            tried += 1
            try:
                found = handle_from_json(wrong, own)
            except InvalidOperation:
                continue
            # Whatever is taken says what it said (another text, number or shape), or is ours whatever it said.
            assert found == own or json.loads(json.dumps(handle_to_json(found))) == wrong, place
    assert tried > 200
