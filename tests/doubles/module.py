"""The functions of a torch device module over a `Driver`, under the names that vendors use."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from tests.doubles import driver as model
from tests.doubles.handles import use_pool, use_stream

if TYPE_CHECKING:
    from tests.doubles.vendors import Flavour


class DeviceModule:
    """Behaviour of every vendor; the surface decides which of these functions one vendor has.

    What a vendor does wrong is a trap, on if its name is in ``traps``.
    """

    def __init__(self, flavour: Flavour, driver: model.Driver, traps: set[str]) -> None:
        self.flavour = flavour
        self.driver = driver
        self.traps = traps
        self.capture_stream: object = None  # the module-wide default of the vendor's graph context
        self.stream_type: type = object

    # -- State ------------------------------------------------------------------------------------------------

    def _lazy_init(self) -> None:
        if self.driver.forked:
            raise RuntimeError(
                f"Cannot re-initialize {self.flavour.label} in forked subprocess. To use {self.flavour.label} "
                "with multiprocessing, you must use the 'spawn' start method"
            )
        if not self.driver.cards:
            raise self.flavour.no_hardware()
        self.driver.initialised = True

    def _is_compiled(self) -> bool:
        return self.flavour.compiled

    def _is_in_bad_fork(self) -> bool:
        return self.driver.forked

    def is_initialized(self) -> bool:
        return self.driver.initialised and not self.driver.forked

    def init(self) -> None:
        self._lazy_init()

    def is_available(self) -> bool:
        self.driver.poisons_fork = True  # asks the runtime
        return bool(self.driver.cards)

    def device_count(self) -> int:
        if "management library does not answer" in self.traps:
            self.driver.poisons_fork = True
        return self.driver.visible

    def current_device(self) -> int:
        self._lazy_init()
        return self.driver.current

    def set_device(self, device: int) -> None:
        self._lazy_init()
        self.driver.current, self.driver.has_context = self._index(device), True

    def _index(self, device: object) -> int:
        index = self.driver.current if device is None else device
        if type(index) is not int or not 0 <= index < len(self.driver.cards):
            raise RuntimeError(f"{self.flavour.label} error: invalid device ordinal")
        return index

    # -- Properties -------------------------------------------------------------------------------------------

    def get_device_properties(self, device: object = None) -> object:
        self._lazy_init()
        card = self.driver.cards[self._index(device)]
        real = self.flavour.surface.record["device_properties"]
        values = {"total_memory": card.total, **self.flavour.properties}
        return SimpleNamespace(**{name: value for name, value in values.items() if name in real})

    def get_device_name(self, device: object = None) -> str:
        return "Never asked for: some vendors ignore the index"

    # -- Streams ----------------------------------------------------------------------------------------------

    def synchronize(self, device: object = None) -> None:
        self._lazy_init()
        index = self._index(device)
        self.driver.now = max([self.driver.now, *(q.until for q in self.driver.queues if q.index == index)])

    def current_stream(self, device: object = None) -> object:
        self._lazy_init()
        found: Any = object.__new__(self.stream_type)
        found._queue = self.driver.current_queues[self._index(device)]
        return found

    def stream(self, stream: object) -> AbstractContextManager[None]:
        return use_stream(self.driver, stream)

    def default_stream(self, device: object = None) -> object:
        self._lazy_init()
        found: Any = object.__new__(self.stream_type)
        found._queue = self.driver.queues[self._index(device)]
        return found

    def set_stream(self, stream: object) -> None:
        self._lazy_init()
        queue = stream._queue  # type: ignore[attr-defined]
        self.driver.current = queue.index  # every vendor's goes to the stream's device
        self.driver.current_queues[queue.index] = queue

    def graph_pool_handle(self) -> object:
        self._lazy_init()
        return ("pool", self.driver.current, object())

    def can_device_access_peer(self, device: object, peer: object) -> bool:
        self._lazy_init()
        return self._index(device) != self._index(peer)

    def temperature(self, device: object = None) -> int:
        return 41 + self._index(device)

    def power_draw(self, device: object = None) -> int:
        self._index(device)
        if "power is not told" in self.traps:
            return 0
        return 98 if self.flavour.name == "rocm" else 98_500  # watts there, milliwatts elsewhere

    def utilization(self, device: object = None) -> int:
        self._index(device)
        if "management library does not answer" in self.traps:
            raise ModuleNotFoundError("pynvml does not seem to be installed or it can't be imported.")
        return 37

    def clock_rate(self, device: object = None) -> int:
        self._index(device)
        return 1980

    def cudart(self) -> object:
        self._lazy_init()
        return SimpleNamespace(cudaHostRegister=self._register, cudaHostUnregister=self._unregister)

    def _register(self, address: int, nbytes: int, flags: int) -> int:
        if not nbytes:
            return 1  # invalid value
        if self.driver.locked(address, nbytes):
            return 712  # already registered
        self.driver.registered[address] = nbytes
        return 0

    def _unregister(self, address: int) -> int:
        return 0 if self.driver.registered.pop(address, None) is not None else 713

    def use_mem_pool(self, pool: object, device: object = None) -> AbstractContextManager[None]:
        self._index(device)
        return use_pool(self.driver, pool)

    def is_current_stream_capturing(self) -> bool:
        if not self.is_initialized():
            raise RuntimeError("Tried to instantiate dummy base class _isCurrentStreamCapturing")
        return self.driver.current_queues[self.driver.current].capturing

    # -- Memory -----------------------------------------------------------------------------------------------

    def empty_cache(self) -> None:
        if not self.is_initialized():
            return
        if "empty_cache asserts in capture" in self.traps and any(
            q.capturing for q in self.driver.current_queues
        ):
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")
        if "empty_cache needs a context" in self.traps and not self.driver.has_context:
            raise RuntimeError(
                "npuSynchronizeDevice: NPU function error, error code is 107002, context pointer null"
            )
        for card in self.driver.cards:
            card.flush()

    def ipc_collect(self) -> None:
        self._lazy_init()
        self.driver.ipc_waiting = 0

    def memory_stats(self, device: object = None) -> dict[str, int]:
        if not self.is_initialized():
            return {}
        card = self.driver.cards[self._index(device)]
        return self.flavour.statistics(card)

    def mem_get_info(self, device: object = None) -> tuple[int, int]:
        self._lazy_init()
        card = self.driver.cards[self._index(device)]
        if "free memory is not told" in self.traps:
            raise RuntimeError(
                "The device (Intel(R) Arc(TM) Graphics) doesn't support querying the available free memory. "
                "You can file an issue at https://github.com/pytorch/pytorch/issues to help us prioritize its "
                "implementation."
            )
        if "free memory is an error" in self.traps:
            raise RuntimeError("HIP error: invalid argument")
        return card.free, card.total

    def reset_peak_memory_stats(self, device: object = None) -> None:
        if not self.is_initialized():
            raise RuntimeError("invalid argument to reset_peak_memory_stats")
        self.driver.cards[self._index(device)].reset_peaks()

    def host_memory_stats(self) -> dict[str, int]:
        return dict(self.driver.pinned) if self.driver.initialised else {}

    def host_empty_cache(self) -> None:
        self._lazy_init()  # unguarded on the vendor that has it
        self.driver.pinned["allocated_bytes.current"] = self.driver.pinned["active_bytes.current"]

    def memory_snapshot(
        self, mempool_id: object = None, include_traces: bool = True
    ) -> list[dict[str, object]]:
        if "async allocator" in self.traps:
            raise RuntimeError("Calling snapshot with backend:cudaMallocAsync is not meaningful.")
        return [
            {"device": i, "total_size": c.reserved} for i, c in enumerate(self.driver.cards) if c.reserved
        ]

    def get_allocator_backend(self) -> str:
        return "cudaMallocAsync" if "async allocator" in self.traps else "native"

    def set_per_process_memory_fraction(self, fraction: float, device: object = None) -> None:
        self._lazy_init()
        if not isinstance(fraction, float):
            raise TypeError("Invalid type for fraction argument, must be `float`")
        if not 0 <= fraction <= 1:
            raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
        self.driver.cards[self._index(device)].fraction = fraction

    def _record_memory_history(self, enabled: object = "all", *args: object, **kwargs: object) -> None:
        self._lazy_init()
        self.driver.history = enabled

    def _get_nvml_device_index(self, device: object) -> int:
        return self.flavour.hidden_devices + self._index(device)

    def _get_amdsmi_device_index(self, device: object) -> int:
        return self.flavour.hidden_devices + self._index(device)

    # -- Random -----------------------------------------------------------------------------------------------

    def manual_seed(self, seed: int) -> None:
        if self.driver.initialised:  # otherwise queued, for whichever device is current by then
            self.driver.seeds[self.driver.current] = int(seed)

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        self._lazy_init()
        seed = self.driver.seeds.get(self._index(device), 0)
        return torch.tensor(list(seed.to_bytes(8, "little")), dtype=torch.uint8)

    def set_rng_state(self, new_state: torch.Tensor, device: object = None) -> None:
        self._lazy_init()
        if not new_state.is_contiguous():
            raise RuntimeError("RNG state must be contiguous")
        self.driver.seeds[self._index(device)] = int.from_bytes(bytes(new_state.tolist()), "little")
