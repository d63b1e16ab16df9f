"""What CUDA and ROCm builds of torch share, since both answer to ``torch.cuda``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection

import torch

from devicekit.contract import MemoryInfo, hookimpl
from devicekit.torchlike import host, statistics
from devicekit.torchlike.backend import TorchModuleBackend
from devicekit.torchlike.needs import hide, needs
from devicekit.torchlike.numbers import whole
from devicekit.torchlike.quirks import EMPTY_CACHE_IN_CAPTURE, Quirk

INTEGRATED_MEMORY = "integrated-memory"
ASYNC_ALLOCATOR = "async-allocator-counts-zero"

COMMON_QUIRKS = (
    Quirk(
        EMPTY_CACHE_IN_CAPTURE,
        "Emptying the cache while a graph is captured fails an internal assertion; nothing is emptied then, as in "
        "later versions.",
        "https://github.com/pytorch/pytorch/issues/158152",
        "<2.8",
    ),
    Quirk(
        ASYNC_ALLOCATOR,
        "Under backend:cudaMallocAsync most statistics read 0 and there is no snapshot; only allocated and "
        "reserved are reported.",
        "https://docs.pytorch.org/docs/stable/generated/torch.cuda.memory.memory_stats.html",
    ),
    Quirk(
        "expandable-segments-not-shared",
        "Tensors in expandable segments cannot be exported to another process; the vendor's error is passed on.",
        "https://github.com/pytorch/pytorch/issues/130890",
    ),
    Quirk(
        "abandoned-capture-keeps-memory",
        "A capture that is abandoned keeps its private pool; emptying the cache cannot give that memory back.",
        "https://github.com/pytorch/pytorch/issues/190308",
    ),
)


class CudaFamilyBackend(TorchModuleBackend):
    """Hooks over ``torch.cuda``, whichever vendor's it is."""

    def __init__(self, *, without_quirks: Collection[str] = ()) -> None:
        super().__init__(without_quirks=without_quirks)
        if self._has_quirk(ASYNC_ALLOCATOR) and self._allocates_asynchronously():
            self._keys = statistics.ASYNC_ALLOCATOR_KEYS
            hide(self, "memory_snapshot", "record_memory_history")
        self._integrated = functools.cache(self._ask_integrated)
        self._registered: dict[int, int] = {}  # bytes, by address: the runtime looks at the address alone

    def _allocates_asynchronously(self) -> bool:
        # Settled by the environment when torch is imported; asking initialises nothing.
        asked = getattr(self.module, "get_allocator_backend", None)
        return asked is not None and self._is_built() and asked() == "cudaMallocAsync"

    def _find_empty_host_cache(self) -> Callable[[], object] | None:
        # The private function is as old as the cache; the public one came with torch 2.12.
        public = getattr(torch.accelerator, "empty_host_cache", None)
        found: Callable[[], object] | None = public or getattr(torch._C, "_host_emptyCache", None)
        return found

    def _capability(self, found: object) -> tuple[int, int] | None:
        major, minor = whole(getattr(found, "major", None)), whole(getattr(found, "minor", None))
        return None if major is None or minor is None else (major, minor)

    @hookimpl
    @needs("cudart")
    def register_host_memory(self, tensor: torch.Tensor) -> None:
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError(f"only contiguous tensors in host memory can be registered, not {tensor.device}")
        address, nbytes = tensor.data_ptr(), tensor.nbytes
        if not nbytes:
            raise ValueError("a tensor without elements has no memory to register")
        self._check(self.module.cudart().cudaHostRegister(address, nbytes, 0), "registered")
        self._registered[address] = nbytes

    @hookimpl
    @needs("cudart")
    def unregister_host_memory(self, tensor: torch.Tensor) -> None:
        address, nbytes = tensor.data_ptr(), tensor.nbytes
        known = self._registered.get(address, nbytes)  # whatever was registered by another road
        if known != nbytes:
            raise ValueError(f"{known} bytes were registered there, and not {nbytes}")
        self._check(self.module.cudart().cudaHostUnregister(address), "unregistered")
        self._registered.pop(address, None)

    def _check(self, result: object, what: str) -> None:
        code = int(getattr(result, "value", result))  # type: ignore[call-overload]  # the runtime's enumeration
        if code != 0:
            raise RuntimeError(f"The memory could not be {what}: the runtime answered {result!r}.")

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        if self._has_quirk(INTEGRATED_MEMORY) and not self._in_bad_fork() and self._integrated(index):
            return self._shared_memory_info(index)
        return super().memory_info(index)

    def _ask_integrated(self, index: int) -> bool:
        asked = getattr(self.module, "get_device_properties", None)
        return asked is not None and bool(getattr(asked(index), "is_integrated", False))

    def _shared_memory_info(self, index: int) -> MemoryInfo:
        total = whole(self.module.get_device_properties(index).total_memory)
        free = host.available_memory()
        return MemoryInfo(free if free is None or total is None else min(free, total), total, "os")
