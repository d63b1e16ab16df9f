"""Moore Threads GPUs as a devicekit backend."""

from __future__ import annotations

import importlib
from importlib import metadata
from types import ModuleType

import torch

from devicekit.contract import hookimpl
from devicekit.torchlike import Quirk, TorchModuleBackend, Vendor, cuda_like_rules, lacks, needs
from devicekit.torchlike.numbers import whole
from devicekit.torchlike.quirks import EMPTY_CACHE_IN_CAPTURE

VENDOR = Vendor(
    device_type="musa",
    collective_backend="mccl",
    visible_devices_variable="MUSA_VISIBLE_DEVICES",
    profiler_activity="PrivateUse1",
    graph_class="MUSAGraph",
    copies_overlap=True,
    stream_handle="musa_stream",
    errors=cuda_like_rules(
        "MUSA",
        out_of_memory=(
            "(?:MUBLAS|MUDNN|MUSPARSE|MUSOLVER)_STATUS_ALLOC_FAILED|MUFFT_ALLOC_FAILED"
            "|MURAND_STATUS_ALLOCATION_FAILED"
        ),
        device_lost="MTMLError_GpuIsLost",
        not_initialised="no MUSA-capable device is detected",
    ),
    quirks=(
        Quirk(
            EMPTY_CACHE_IN_CAPTURE,
            "Emptying the cache while a graph is captured fails an internal assertion; nothing is emptied then.",
            "https://github.com/pytorch/pytorch/issues/158152",
        ),
        Quirk(
            "probe-registers-fork-handler",
            "The first question for devices registers a fork handler: a process that forks afterwards cannot use "
            "the device in the child.",
            "https://github.com/MooreThreads/torch_musa",
        ),
        Quirk(
            "device-count-cached",
            "The number of devices is fixed by the first question; MUSA_VISIBLE_DEVICES set later has no effect.",
            "https://github.com/MooreThreads/torch_musa",
        ),
        Quirk(
            "graph-executables-limited",
            "About 2048 captured graphs can be alive in one process.",
            "https://github.com/MooreThreads/torchada",
        ),
        Quirk(
            "no-uuid",
            "Properties carry no uuid; it is unknown.",
            "https://github.com/MooreThreads/torch_musa",
        ),
    ),
)


@lacks("empty_host_cache", "host_memory_stats")  # the cache of pinned memory is out of Python's reach
@lacks("allocator_settings", "set_allocator_setting", "priority_range", "supported_dtypes", "telemetry")
class Backend(TorchModuleBackend):
    """Hooks of Moore Threads GPUs."""

    vendor = VENDOR

    def _load(self) -> ModuleType:
        if not hasattr(torch, "musa"):  # torch loads it by itself unless autoloading is off
            importlib.import_module("torch_musa")
        return super()._load()

    def _version(self) -> str:
        return metadata.version("torch_musa")

    def _is_built(self) -> bool:
        return getattr(torch.version, "musa", None) is not None  # only the vendor's patched torch has it

    def _architecture(self, found: object) -> str | None:
        major, minor = getattr(found, "major", None), getattr(found, "minor", None)
        return None if major is None or minor is None else f"{major}.{minor}"

    def _capability(self, found: object) -> tuple[int, int] | None:
        major, minor = whole(getattr(found, "major", None)), whole(getattr(found, "minor", None))
        return None if major is None or minor is None else (major, minor)

    @hookimpl
    @needs("_record_memory_history")  # at the top of this vendor's module
    def record_memory_history(self, index: int, enabled: bool) -> None:
        if enabled or self._is_used():  # the vendor's function initialises
            self.module._record_memory_history("all" if enabled else None)
