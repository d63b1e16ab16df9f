"""The words by which code gives a vendor away."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Modules of torch and device types; what `.cuda()` and `is_cuda` are called for each.
DEVICES = frozenset(
    {"cuda", "hip", "rocm", "xpu", "npu", "musa", "mps", "mtia", "hpu", "mlu", "gcu", "xla", "ipu", "maia"}
)
CHOSEN = frozenset({"cuda", "hip", "rocm", "xpu", "npu", "musa"})
"""Those whose backends are chosen by themselves; any other device is used only where its backend is named."""
# Packages that only one vendor's hardware needs.
PACKAGES = frozenset(
    {
        "torch_npu", "torch_musa", "torch_xla", "torch_mlu", "torch_gcu", "torchada", "habana_frameworks",
        "intel_extension_for_pytorch", "pynvml", "py3nvml", "amdsmi", "pymtml", "cupy", "pycuda",
    }
)  # fmt: skip
COLLECTIVES = frozenset({"nccl", "rccl", "hccl", "mccl", "xccl", "ccl", "cncl", "eccl", "lccl"})
VISIBLE = re.compile(r"[A-Z_]*VISIBLE_(DEVICES|CARDS|MODULES)|ZE_AFFINITY_MASK")
ALLOCATOR = re.compile(r"PYTORCH_(CUDA|HIP|NPU|MUSA|XPU|MLU|GCU)_ALLOC_CONF|PYTORCH_NO_CUDA_MEMORY_CACHING")
# Parts of torch.backends and torch.version that speak of one vendor.
_RUNTIMES = (
    "CUDA", "CUDNN", "CUBLAS", "NVIDIA", "NCCL", "TORCH_CUDA", "TORCH_NCCL", "HIP", "HSA", "ROCM", "RCCL",
    "MIOPEN", "ASCEND", "HCCL", "TORCH_NPU", "TORCH_HCCL", "NPU", "MUSA", "MCCL", "XPU", "SYCL", "ONEAPI", "ZE",
    "CCL", "MLU", "CNCL", "HABANA", "HPU", "GCU", "XLA", "PJRT",
)  # fmt: skip
SETTING = re.compile(rf"({'|'.join(_RUNTIMES)})_[A-Z0-9_]+")
"""A variable that one vendor's libraries read."""
BACKENDS = frozenset({"cuda", "cudnn", "mps", "mkldnn", "xeon", "miopen"})
VERSIONS = frozenset({"cuda", "hip", "xpu", "musa", "cann"})

_DEVICES = "|".join(sorted(DEVICES))
PATH = re.compile(rf"torch\.({_DEVICES})(\.\w+)*")
"""A string that spells a name: for a patch of a test, or a tensor's type as in "torch.cuda.FloatTensor"."""

_VALUE = re.compile(
    r"torch\.(version\.\w+|backends(\.\w+)+\.(allow_\w+|fp32_precision|benchmark|benchmark_limit|deterministic|enabled))"
)
_TELLTALE = (
    *sorted(DEVICES), "cudnn", "mkldnn", "xeon", "miopen", "cann", *sorted(PACKAGES), *sorted(COLLECTIVES),
    "visible_", "ze_affinity", "alloc_conf", "sycl", *(f"{one.lower()}_" for one in _RUNTIMES),
)  # fmt: skip


class Telltale:
    """What every line with a finding contains: one of the words that a text has."""

    def __init__(self, found: Sequence[str]) -> None:
        self._found = found
        # Words within words are none: "ship" and "dumps" name no vendor.
        self._pattern = re.compile(f"(?<![a-z])(?:{'|'.join(found)})")

    def within(self, line: str) -> bool:
        """Whether a line contains one."""
        lower = line.lower()
        # Most lines contain none, which the words alone tell soonest.
        return any(word in lower for word in self._found) and self._pattern.search(lower) is not None


def telltale(text: str) -> Telltale | None:
    """The words that a text has; ``None``: it has none."""
    lower = text.lower()
    found = [word for word in _TELLTALE if word in lower]
    return Telltale(found) if found else None


_DEVICE_LITERAL = re.compile(rf"({_DEVICES})(:(\d*|\{{\w*\}}|%[dsi]))?")
_HANDLE = re.compile(rf"({_DEVICES})_(stream|event)|sycl_(queue|event)")
_HOLDS_DEVICE = re.compile(r"(\w*_)?device(_type|_str|_name)?|map_location")
_QUESTION = re.compile(rf"_?(is|has|on|use|using)_(torch_)?({_DEVICES})(_available|_alike|_platform)?")
_VENDOR = re.compile(rf"(?<![a-z])(?:{_DEVICES})")
_NO_WORD = re.compile(r"[^A-Za-z0-9]|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_APART = DEVICES - {"cuda"} | {"ascend", "cambricon", "gaudi", "habana"}
PACKAGES_APART = PACKAGES - {"pynvml", "py3nvml", "cupy", "pycuda"}
"""Packages of one vendor beside others; see `is_apart`."""
_SAME = {"hip": "cuda", "rocm": "cuda"}  # which torch calls by one name
_COLLECTIVE = re.compile(rf"(\w+:)?({'|'.join(sorted(COLLECTIVES))})")


def is_device(text: str) -> bool:
    """Whether ``text`` names a vendor's device: "npu", "npu:1", "npu:{}", or "npu:" that something follows."""
    return _DEVICE_LITERAL.fullmatch(text) is not None


def is_handle(name: str) -> bool:
    """Whether a name is what a vendor's streams or events call their native handle: ``cuda_stream``."""
    return _HANDLE.fullmatch(name) is not None


def may_hold_device(name: str) -> bool:
    """Whether devices are given to a name: ``device``, ``_device_type``, ``map_location``, ``DEVICE``."""
    return _HOLDS_DEVICE.fullmatch(name.lower() if name.isupper() else name) is not None


def is_question(name: str) -> bool:
    """Whether a name asks which vendor it is: ``is_cuda``, ``_is_npu``, ``is_xpu_available``."""
    return _QUESTION.fullmatch(name.lower()) is not None


def vendors_in(text: str) -> set[str]:
    """The vendors that a piece of code names, in words or in names."""
    return {_SAME.get(one, one) for one in _VENDOR.findall(text.lower())}


def is_apart(name: str) -> bool:
    """Whether a name or path says that its code is one vendor's, beside the code of others: ``MUSAConnector``.

    "cuda" does not: code that knows one vendor only calls everything so.
    """
    return any(word.rstrip("0123456789").lower() in _APART for word in _NO_WORD.split(name))


def without_vendors(text: str) -> str:
    """A piece of code in which every vendor's name is the same, to see whether it says the same of several."""
    return _VENDOR.sub("@", text.lower())


def is_vendor(path: str) -> bool:
    """Whether a dotted path is, or is in, a vendor's module of torch."""
    first, _, rest = path.partition(".")
    return first == "torch" and rest.partition(".")[0] in DEVICES


def is_value(path: str) -> bool:
    """Whether what stands at a dotted path is a plain value, so that a name it is assigned to names no vendor."""
    return _VALUE.fullmatch(path) is not None


def is_collective(text: str) -> bool:
    """Whether ``text`` names a vendor's collectives, alone or mixed with others: "nccl", "cpu:gloo,cuda:nccl"."""
    return any(_COLLECTIVE.fullmatch(part.strip()) for part in text.split(",")) if len(text) < 200 else False


def module_rule(path: str) -> str | None:
    """The rule that a dotted path breaks, if it does."""
    first, _, after = path.partition(".")
    if first in PACKAGES:
        return "DK007"
    if first != "torch" or not after:
        return None
    rest = after.split(".")
    if rest[0] in DEVICES:
        return "DK001"
    inner = rest[1] if len(rest) > 1 else ""
    if rest[:2] == ["profiler", "ProfilerActivity"]:
        return "DK001" if len(rest) > 2 and rest[2].lower() in DEVICES else None
    if rest[0] == "version" and inner in VERSIONS:
        return "DK004"
    return "DK001" if rest[0] == "backends" and inner in BACKENDS else None
