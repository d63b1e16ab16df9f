"""Ascend NPUs as a devicekit backend."""

from __future__ import annotations

import importlib
import os
from importlib import metadata
from types import ModuleType

import torch

from devicekit.contract import ErrorKind
from devicekit.torchlike import ErrorRules, Quirk, TorchModuleBackend, Vendor, lacks
from devicekit.torchlike.needs import meets
from devicekit.torchlike.quirks import EMPTY_CACHE_IN_CAPTURE

NO_CONTEXT_IN_THREAD = "empty-cache-needs-context"
_AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
# "error code is 507035", "errorCode: 207001", "ret = 107002"
_CODE = r"(?i:\berror ?code(?: is|:| ?=)? ?|\bret(?:code)?(?:=| = | is |: ?))(?<!\d)"

VENDOR = Vendor(
    device_type="npu",
    collective_backend="hccl",
    visible_devices_variable="ASCEND_RT_VISIBLE_DEVICES",
    profiler_activity="PrivateUse1",
    graph_class="NPUGraph",
    copies_overlap=True,
    stream_handle="npu_stream",
    telemetry={"utilisation": ("utilization", 0.01)},  # per cent
    host_empty_cache="host_empty_cache",
    errors=ErrorRules(
        # 507xxx are faults inside the device and its driver: cores, heartbeat, memory, scheduler.
        device_lost=rf"{_CODE}507\d{{3}}\b|HBM MULTI BIT ECC ERROR|\bUCE ERROR|\bFORCE STOP",
        # 207001 is the runtime's refusal to allocate. Up to torch_npu 2.9 all of these are plain RuntimeErrors.
        out_of_memory=rf"\bNPU out of memory\.|{_CODE}(?:207001|200000)\b|\bEL0004: ",
        # 107002: the calling thread has no context. A failing lazy initialisation ends in a NameError.
        not_initialised=(
            rf"Cannot re-initialize NPU in forked subprocess|{_CODE}107002\b|context pointer null"
            "|name 'DeferredNpuCallError' is not defined"
        ),
        wrong_device=rf"{_CODE}107001\b",
        names={
            ErrorKind.DEVICE_LOST: (
                r"\bACL_ERROR_RT_(?:AICORE_(?:TIMEOUT|EXCEPTION|TRAP_EXCEPTION|OVER_FLOW)|AICPU_(?:TIMEOUT|EXCEPTION)"
                r"|VECTOR_CORE_(?:TIMEOUT|EXCEPTION)|LOST_HEARTBEAT|DEVICE_MEM_ERROR|DEVICE_TASK_ABORT|LINK_ERROR"
                r"|TS_ERROR|DRV_INTERNAL_ERROR)\b"
            ),
            ErrorKind.OUT_OF_MEMORY: r"\bACL_ERROR_(?:RT_MEMORY_ALLOCATION|BAD_ALLOC)\b|\bHCCL_E_MEMORY\b",
            ErrorKind.NOT_INITIALISED: r"\bACL_ERROR_(?:RT_CONTEXT_NULL|UNINITIALIZE)\b",
            ErrorKind.WRONG_DEVICE: r"\bACL_ERROR_(?:RT_INVALID_DEVICEID|INVALID_DEVICE)\b",
        },
    ),
    quirks=(
        Quirk(
            NO_CONTEXT_IN_THREAD,
            "Emptying the cache fails with 'context pointer null' in a thread that never chose a device; the "
            "current device is chosen again first.",
            "https://github.com/hiyouga/LlamaFactory/issues/8514",
        ),
        Quirk(
            EMPTY_CACHE_IN_CAPTURE,
            "What emptying the cache does while a graph is captured is not documented; nothing is emptied then.",
            "https://github.com/pytorch/pytorch/issues/158152",
        ),
        Quirk(
            "host-cache-unguarded",
            "Emptying the pinned cache would initialise the device; it is called only once the device is in use.",
            "https://github.com/Ascend/pytorch",
            ">=2.10",
        ),
        Quirk(
            "out-of-memory-is-runtime-error",
            "Running out of memory raises a plain RuntimeError; it is told by its message.",
            "https://github.com/vllm-project/vllm-omni/issues/1199",
            "<2.10",
        ),
        Quirk(
            "name-ignores-index",
            "torch.npu.get_device_name() names the current device whatever it is asked for; properties are read.",
            "https://github.com/Ascend/pytorch",
        ),
        Quirk(
            "import-leaves-autoload-off",
            "Importing torch_npu leaves TORCH_DEVICE_BACKEND_AUTOLOAD at 0 for child processes; it is restored.",
            "https://docs.pytorch.org/docs/main/accelerator/autoload.html",
        ),
        Quirk(
            "pool-conflicts-with-empty-cache",
            "Emptying the cache inside a private pool's context conflicts with the pool: leave the context first.",
            "https://github.com/sgl-project/sglang/pull/21507",
        ),
    ),
)


@lacks("allocator_settings", "set_allocator_setting", "priority_range", "supported_dtypes")
class Backend(TorchModuleBackend):
    """Hooks of Ascend NPUs."""

    vendor = VENDOR

    def _load(self) -> ModuleType:
        if not hasattr(torch, "npu"):  # torch loads it by itself unless autoloading is off
            before = os.environ.get(_AUTOLOAD)
            try:
                importlib.import_module("torch_npu")
            finally:
                if before is None:
                    os.environ.pop(_AUTOLOAD, None)
                else:
                    os.environ[_AUTOLOAD] = before
        return super()._load()

    def _version(self) -> str:
        return metadata.version("torch_npu")

    def _is_built(self) -> bool:
        return True  # the module exists only where torch_npu was imported

    def _empty_cache(self) -> None:
        if self._has_quirk(NO_CONTEXT_IN_THREAD) and meets(self.module, ("set_device", "current_device")):
            self.module.set_device(self.module.current_device())
        super()._empty_cache()
