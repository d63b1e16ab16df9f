"""Which modules surfaces are taken of, and which of their names beyond the public functions."""

from __future__ import annotations

from typing import Any

SOURCES = {
    "cuda": "torch.cuda",
    "xpu": "torch.xpu",
    "mps": "torch.mps",
    "mtia": "torch.mtia",
    "accelerator": "torch.accelerator",
    "npu": "torch_npu.npu",
    "musa": "torch_musa",
}
CLASSES = frozenset(
    {
        "Stream",
        "Event",
        "ExternalStream",
        "StreamContext",
        "MemPool",
        "device",
        "device_index",
        "graph",
        "Graph",
    }
    | {f"{label}Graph" for label in ("CUDA", "XPU", "NPU", "MUSA", "MTIA")}
)
PRIVATE = frozenset(
    {"_is_compiled", "_is_in_bad_fork", "_lazy_init", "_get_nvml_device_index", "_get_amdsmi_device_index"}
    | {"_record_memory_history"}
)
MEMORY = frozenset({"_dump_snapshot", "_record_memory_history", "_snapshot"})

Rows = list[list[Any]]  # for each parameter: name, kind, has a default
