"""What management libraries say under every form of the variable that hides devices, as torch reads it."""

from __future__ import annotations

import os
from unittest import mock

import pytest
import torch

from devicekit_cuda import management as nvidia
from devicekit_rocm import management as amd

NUMBERS = {"0": 0, "3,1": 3, " 2 , 0": 2, "1,-1,0": 1, "5x": 5, "0x1": 0, "+1": 1}
NOTHING = [
    "",
    "-1",
    ",",
    "abc",
    "MIG-4b7e3d0e-d5a1-5c1f-a1b2-0f3c5d7e9b11",
    "MIG-GPU-1/2/0",
    "GPU-",
    "0,0",
    "NoDevFiles",
]
HOSTILE = ["9" * 5000, "\u0661", "0;rm -rf /", "GPU-\u00e9", ",".join(map(str, range(5000))), "0," * 3000]


@pytest.mark.parametrize("form", [*NUMBERS, *NOTHING, *HOSTILE], ids=lambda form: ascii(form)[:24])
@pytest.mark.parametrize(
    ("helper", "variable"),
    [(nvidia, "CUDA_VISIBLE_DEVICES"), (amd, "HIP_VISIBLE_DEVICES")],
    ids=["cuda", "rocm"],
)
def test_a_helper_answers_the_right_device_or_unknown(helper, variable: str, form: str) -> None:
    with mock.patch.dict(os.environ, {variable: form}):
        index, address = helper.place(torch.cuda, 0)
        assert address is None  # there is no such library here
        assert helper.processes(torch.cuda, 0) is None
    assert index is None or type(index) is int
    if helper is nvidia and form in NUMBERS:
        assert index == NUMBERS[form]
    if helper is nvidia and form in NOTHING:
        assert index is None
