"""DeepSpeed's accelerator, served from a Device; its operators stay DeepSpeed's own for that kind of device."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from deepspeed.accelerator.abstract_accelerator import DeepSpeedAccelerator

import devicekit

_T = TypeVar("_T")
# DeepSpeed's own accelerators, for what is no device layer: operator builders and compile back ends.
_OPERATORS = {
    "cpu": "cpu_accelerator:CPU_Accelerator",
    "cuda": "cuda_accelerator:CUDA_Accelerator",
    "rocm": "cuda_accelerator:CUDA_Accelerator",
    "xpu": "xpu_accelerator:XPU_Accelerator",
    "npu": "npu_accelerator:NPU_Accelerator",
}


class DevicekitAccelerator(DeepSpeedAccelerator):
    """One backend's devices as DeepSpeed asks for them. What is unknown raises `NotImplementedError` naming it."""

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self._opened = devicekit.get_device(device)
        self._name = self._opened.torch_device.type
        self._communication_backend_name = self._opened.collective_backend()
        self._compile_backend = "inductor"
        self._streams = self._opened.supports("create_stream")
        self._operators = _operators(self._opened)

    # -- How the device works ---------------------------------------------------------------------------------

    def is_synchronized_device(self) -> bool:
        """Whether every operation has finished when it returns."""
        return not self._streams

    def use_host_timers(self) -> bool:
        """Whether the host's clock measures device time."""
        return not self._streams

    def resolves_data_dependency(self) -> bool:
        """Whether work waits for its inputs without events."""
        return not self._streams

    def handles_memory_backpressure(self) -> bool:
        """Whether the device itself waits for memory."""
        return not self._streams

    # -- Devices ----------------------------------------------------------------------------------------------

    def device_name(self, device_index: int | None = None) -> str:
        """The device as torch writes it; without an index its type."""
        return self._name if device_index is None else str(self._at(device_index).torch_device)

    def device(self, device_index: int | None = None) -> torch.device:
        """The device."""
        return self._at(device_index).torch_device

    def set_device(self, device_index: int) -> None:
        """Make a device current, for good."""
        devicekit.make_current(self._at(device_index))

    def current_device(self) -> int:
        """The current index."""
        return self._at(None).index

    def current_device_name(self) -> str:
        """The current device as torch writes it."""
        return str(self._at(None).torch_device)

    def device_count(self) -> int:
        """How many devices this process can see."""
        return self._opened.backend.device_count or 1

    def synchronize(self, device_index: int | None = None) -> None:
        """Wait for all work of a device."""
        self._at(device_index).synchronize()

    def is_available(self) -> bool:
        """True: an opened device is one whose hardware is here."""
        return True

    # -- Random -----------------------------------------------------------------------------------------------

    def random(self) -> object:
        """torch's module."""
        return torch.random

    def set_rng_state(self, new_state: torch.Tensor, device_index: int | None = None) -> None:
        """Restore a generator."""
        self._at(device_index).set_rng_state(new_state)

    def get_rng_state(self, device_index: int | None = None) -> torch.Tensor:
        """A generator's state."""
        return self._at(device_index).get_rng_state()

    def manual_seed(self, seed: int) -> None:
        """Seed the current device."""
        self._at(None).manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        """Seed every device."""
        for index in range(self.device_count()):
            self._at(index).manual_seed(seed)

    def initial_seed(self) -> int:
        """Not offered: a device does not say what it was seeded with."""
        raise self._lacks("initial_seed")

    def default_generator(self, device_index: int) -> torch.Generator:
        """The generator that `manual_seed` seeds, where torch has it."""
        if self._name == "cpu":
            return torch.default_generator
        generators: Any = getattr(torch.get_device_module(self._name), "default_generators", None)
        if not generators:
            raise self._lacks("default_generator")
        generator: torch.Generator = generators[device_index]
        return generator

    # -- Streams, events and graphs ---------------------------------------------------------------------------

    @property
    def Stream(self) -> Callable[..., devicekit.Stream] | None:  # DeepSpeed's name
        """What makes a stream; ``None`` on a device that finishes each operation at once."""
        if not self._streams:
            return None
        return lambda device=None, priority=0, **_: self._at(device).create_stream(priority)

    def stream(self, stream: devicekit.Stream | None) -> AbstractContextManager[object]:
        """A context in which a stream is current."""
        return nullcontext() if stream is None else self._at(None).use_stream(stream)

    def current_stream(self, device_index: int | None = None) -> devicekit.Stream | None:
        """The current stream."""
        return self._at(device_index).current_stream() if self._streams else None

    def default_stream(self, device_index: int | None = None) -> devicekit.Stream | None:
        """The stream on which work runs that names none."""
        if not self._streams:
            return None
        found: Any = getattr(self._at(device_index), "default_stream", None)
        if found is None:
            raise self._lacks("default_stream")
        stream: devicekit.Stream = found()
        return stream

    @property
    def Event(self) -> Callable[..., devicekit.Event] | None:
        """What makes an event; ``None`` on a device that finishes each operation at once."""
        if not self._opened.supports("create_event"):
            return None
        return lambda enable_timing=False, **_: self._at(None).create_event(timing=enable_timing)

    def is_current_stream_capturing(self) -> bool:
        """Whether the current stream captures a graph; false where none can be captured."""
        if not self._opened.supports("create_graph"):
            return False
        return self._known(self._at(None).is_capturing(), "is_capturing")

    def create_graph(self) -> devicekit.DeviceGraph | None:
        """An empty graph; ``None`` where graphs cannot be captured, which DeepSpeed then does without."""
        return self._at(None).create_graph() if self._opened.supports("create_graph") else None

    def capture_to_graph(
        self, graph: devicekit.DeviceGraph, pool: object = None, stream: object = None
    ) -> AbstractContextManager[None]:
        """A context whose work is captured."""
        if pool is not None or stream is not None:
            raise self._lacks("create_graph with a pool or stream of the caller's")
        return graph.capture()

    def replay_graph(self, graph: devicekit.DeviceGraph) -> None:
        """Run what was captured."""
        graph.replay()

    # -- Memory -----------------------------------------------------------------------------------------------

    def empty_cache(self) -> None:
        """Hand unused memory back to the driver."""
        self._at(None).release_cache()

    def memory_allocated(self, device_index: int | None = None) -> int:
        """Bytes of live tensors."""
        return self._figure(device_index, "allocated")

    def max_memory_allocated(self, device_index: int | None = None) -> int:
        """The most of them."""
        return self._figure(device_index, "peak_allocated")

    def memory_reserved(self, device_index: int | None = None) -> int:
        """Bytes held from the driver."""
        return self._figure(device_index, "reserved")

    def max_memory_reserved(self, device_index: int | None = None) -> int:
        """The most of them."""
        return self._figure(device_index, "peak_reserved")

    memory_cached = memory_reserved
    max_memory_cached = max_memory_reserved

    def reset_peak_memory_stats(self, device_index: int | None = None) -> None:
        """Make every peak equal to its current value; nothing where there are no peaks."""
        self._at(device_index).reset_peak_memory_stats()

    reset_max_memory_allocated = reset_peak_memory_stats
    reset_max_memory_cached = reset_peak_memory_stats

    def memory_stats(self, device_index: int | None = None) -> dict[str, int]:
        """The vendor's own counters."""
        return dict(self._at(device_index).memory_stats().raw)

    def total_memory(self, device_index: int | None = None) -> int:
        """Bytes of the whole device."""
        return self._known(self._at(device_index).memory_info().total, "memory_info")

    def available_memory(self, device_index: int | None = None) -> int:
        """The driver's free bytes."""
        return self._known(self._at(device_index).memory_info().free, "memory_info")

    @property
    def _torch_pins_host_memory(self) -> bool:
        """Whether what DeepSpeed calls pinned is: it counts what is."""
        return self._opened.supports("pin_memory")

    def _torch_pin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        # DeepSpeed's own convention on a device that pins nothing is the tensor itself, counted as not pinned.
        return self._opened.pin_memory(tensor) if self._torch_pins_host_memory else tensor

    def _torch_empty_pinned(self, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        return self._torch_pin_memory(tensor.new_empty(shape, device="cpu"))

    # -- Types ------------------------------------------------------------------------------------------------

    def is_bf16_supported(self) -> bool:
        """Whether the device computes with bfloat16: tried once."""
        return _computes(self._opened, torch.bfloat16)

    def is_fp16_supported(self) -> bool:
        """Whether the device computes with float16: tried once."""
        return _computes(self._opened, torch.float16)

    def supported_dtypes(self) -> list[torch.dtype]:
        """Those of float, half and bfloat16 that the device computes with."""
        return [one for one in (torch.float, torch.half, torch.bfloat16) if _computes(self._opened, one)]

    def is_triton_supported(self) -> bool:
        """Whether Triton has this device: as DeepSpeed's own accelerator says."""
        return bool(self._operators is not None and self._operators.is_triton_supported())

    def _tensor(self, dtype: torch.dtype) -> Callable[[object], torch.Tensor]:
        return lambda data: torch.tensor(data, dtype=dtype, device=self._at(None).torch_device)

    BFloat16Tensor = property(lambda self: self._tensor(torch.bfloat16))
    ByteTensor = property(lambda self: self._tensor(torch.uint8))
    DoubleTensor = property(lambda self: self._tensor(torch.double))
    FloatTensor = property(lambda self: self._tensor(torch.float))
    HalfTensor = property(lambda self: self._tensor(torch.half))
    IntTensor = property(lambda self: self._tensor(torch.int))
    LongTensor = property(lambda self: self._tensor(torch.long))

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lives on this kind of device."""
        return tensor.device.type == self._name

    # -- Processes and tools ----------------------------------------------------------------------------------

    def communication_backend_name(self) -> str:
        """The name for ``init_process_group``."""
        return self._known(self._communication_backend_name, "collective_backend")

    def visible_devices_envs(self) -> list[str]:
        """The variables that limit what a process sees."""
        variable = self._opened.visible_devices_variable()
        return [] if variable is None else [variable]

    def set_visible_devices_envs(self, current_env: dict[str, str], local_accelerator_ids: list[int]) -> None:
        """Limit a process that is to be started."""
        for name in self.visible_devices_envs():
            current_env[name] = ",".join(map(str, local_accelerator_ids))

    def range_push(self, msg: str, domain: object = None, category: object = None) -> None:
        """Nothing: torch.profiler.record_function marks ranges on every vendor."""

    def range_pop(self, domain: object = None) -> None:
        """Nothing, as `range_push`."""

    def lazy_call(self, callback: Callable[[], _T]) -> _T:
        """Call at once: an opened device is ready."""
        return callback()

    def export_envs(self) -> list[str]:
        """Prefixes of variables that other nodes need."""
        return [] if self._operators is None else list(self._operators.export_envs())

    # -- DeepSpeed's own operators ----------------------------------------------------------------------------

    def op_builder_dir(self) -> str:
        """Where DeepSpeed keeps this device's operators."""
        return str(self._own("op_builder_dir").op_builder_dir())

    def create_op_builder(self, class_name: str) -> object:
        """DeepSpeed's builder of an operator; ``None``, its own word, where it has none for this device."""
        return None if self._operators is None else self._operators.create_op_builder(class_name)

    def get_op_builder(self, class_name: str) -> object:
        """DeepSpeed's class for it; ``None`` where it has none for this device."""
        return None if self._operators is None else self._operators.get_op_builder(class_name)

    def build_extension(self) -> object:
        """How extensions are built."""
        return self._own("build_extension").build_extension()

    def get_compile_backend(self) -> str:
        """The back end of torch.compile."""
        return self._compile_backend

    def set_compile_backend(self, backend: str) -> None:
        """Choose the back end of torch.compile."""
        known = torch._dynamo.list_backends(exclude_tags=())
        if backend not in known:
            raise ValueError(f"{backend} is no compile back end of {self._name}. There are {known}.")
        self._compile_backend = backend

    def __getattr__(self, name: str) -> object:
        """What newer DeepSpeeds ask beyond this: their own accelerator's answer, if it has one."""
        own = self.__dict__.get("_operators")
        if own is None or name.startswith("__"):
            raise AttributeError(name)
        return getattr(own, name)

    # -- Parts ------------------------------------------------------------------------------------------------

    def _at(self, index: int | None) -> devicekit.Device:
        if not self._opened.backend.manifest.indexed:
            return self._opened
        if index is None:
            return devicekit.device_for(torch.device(self._name))
        return devicekit.get_device(f"{self._opened.name}:{index}")

    def _figure(self, index: int | None, field: str) -> int:
        stats = self._at(index).memory_stats()
        found: int | None = getattr(stats, field)
        if found is None and stats.state is devicekit.AllocatorState.UNINITIALISED:
            return 0
        return self._known(found, f"memory_stats ({field})")

    def _known(self, value: _T | None, hook: str) -> _T:
        if value is None:
            raise self._lacks(hook)
        return value

    def _own(self, what: str) -> Any:
        if self._operators is None:
            raise self._lacks(what)
        return self._operators

    def _lacks(self, hook: str) -> NotImplementedError:
        return NotImplementedError(f"Backend {self._opened.backend.label} does not answer {hook}.")


def _operators(device: devicekit.Device) -> Any:
    place = _OPERATORS.get(device.name)
    if place is None:
        return None
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"deepspeed.accelerator.{module}"), name)()


def _computes(device: devicekit.Device, dtype: torch.dtype) -> bool:
    try:
        one = torch.ones(2, 2, dtype=dtype, device=device.torch_device)
        return bool((one @ one).float().sum().item() == 8)
    except (RuntimeError, NotImplementedError, TypeError):
        return False
