"""The words by which code gives a vendor away."""

from __future__ import annotations

import re

# Modules of torch and device types; what `.cuda()` and `is_cuda` are called for each.
DEVICES = frozenset(
    {"cuda", "hip", "rocm", "xpu", "npu", "musa", "mps", "mtia", "hpu", "mlu", "gcu", "xla", "ipu", "maia"}
)
# Packages that only one vendor's hardware needs.
PACKAGES = frozenset(
    {
        "torch_npu", "torch_musa", "torch_xla", "torch_mlu", "torch_gcu", "torchada", "habana_frameworks",
        "intel_extension_for_pytorch", "pynvml", "py3nvml", "amdsmi", "pymtml", "cupy", "pycuda",
    }
)  # fmt: skip
COLLECTIVES = frozenset({"nccl", "rccl", "hccl", "mccl", "xccl", "ccl", "cncl", "eccl", "lccl"})
VISIBLE = re.compile(r"[A-Z_]*VISIBLE_(DEVICES|CARDS|MODULES)|ZE_AFFINITY_MASK")
# Parts of torch.backends and torch.version that speak of one vendor.
BACKENDS = frozenset({"cuda", "cudnn", "mps", "mkldnn", "xeon", "miopen"})
VERSIONS = frozenset({"cuda", "hip", "xpu", "musa", "cann"})

_DEVICE_LITERAL = re.compile(rf"({'|'.join(sorted(DEVICES))})(:\d*)?")
_QUESTION = re.compile(
    rf"_?(is|has|on|use|using)_({'|'.join(sorted(DEVICES))})(_available|_alike|_platform)?"
)


def is_device(text: str) -> bool:
    """Whether ``text`` names a vendor's device: "npu", "npu:1", or "npu:" as the start of an f-string."""
    return _DEVICE_LITERAL.fullmatch(text) is not None


def is_question(name: str) -> bool:
    """Whether a name asks which vendor it is: ``is_cuda``, ``_is_npu``, ``is_xpu_available``."""
    return _QUESTION.fullmatch(name.lower()) is not None
