"""Teach torch the device type ``sim``, once in a process, and put a simulated machine behind it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from packaging.version import Version

from devicekit.testing import accelerator, active
from devicekit.testing.active import DEVICE_TYPE
from devicekit.testing.clock import MockClock
from devicekit.testing.config import SimConfig
from devicekit.testing.copies import copy_, write
from devicekit.testing.errors import CannotEnable
from devicekit.testing.module import SimModule
from devicekit.testing.simulator import Simulator
from devicekit.testing.tensor import SimTensor, rebuild
from devicekit.testing.wrapper import DeviceTensor, empty_on

__all__ = ["enable", "is_enabled", "simulation"]

OLDEST_TORCH = Version("2.10")

#: What torch was taught lives as long as this does.
_library: torch.library.Library | None = None
_lock = threading.Lock()


def is_enabled() -> bool:
    """True when this process has the device type ``sim``."""
    return _library is not None


def enable(config: SimConfig | None = None) -> Simulator:
    """Give this process a simulated accelerator, as device type ``sim`` and module ``torch.sim``.

    Returns the machine. Called again, it returns the machine that is there; with a config then, it raises
    ValueError unless the config equals that machine's, since a machine does not change under its tensors: see
    :func:`simulation`.

    Raises
    ------
    CannotEnable
        torch is older than 2.10, or another backend has taken torch's one free device type in this process.
    """
    global _library
    with _lock:
        if _library is None:
            _check_possible()
            _library = _teach_torch()
            active.replace(Simulator(config))
    machine = active.simulator()
    if config is not None and machine.config != config:
        raise ValueError(
            "a simulated machine of another configuration is in use: replace it for a while with "
            "simulation(config)"
        )
    return machine


@contextmanager
def simulation(config: SimConfig | None = None, *, clock: MockClock | None = None) -> Iterator[Simulator]:
    """A fresh machine for the length of a block: nothing allocated, its clock at zero, no faults.

    Tensors of the machine before cannot be used inside, nor those made inside afterwards.
    """
    enable()
    machine = Simulator(config, clock=clock)
    before = active.replace(machine)
    try:
        yield machine
    finally:
        active.replace(before)


def _check_possible() -> None:
    version = Version(torch.__version__)
    if version.release < OLDEST_TORCH.release:
        raise CannotEnable(
            f"the simulated accelerator needs torch >= {OLDEST_TORCH}, and this is {version}: pip install -U torch"
        )
    taken = torch._C._get_privateuse1_backend_name()
    if taken != "privateuseone":
        raise CannotEnable(
            f"torch has one free device type in a process, and {taken!r} has taken it: use the simulated "
            "accelerator in a process that does not import that backend (TORCH_DEVICE_BACKEND_AUTOLOAD=0 keeps it "
            "out)"
        )


def _teach_torch() -> torch.library.Library:
    try:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
    except ImportError as error:
        raise CannotEnable(
            f"torch {torch.__version__} has no way for a backend in Python, as 2.10 to 2.13 have"
        ) from error
    _setup_privateuseone_for_python_backend(DEVICE_TYPE, backend_module=SimModule(), hook=_hooks())
    # What torch cached while there was no such device.
    torch.get_device_module.cache_clear()
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]  # torch does not type it
    for operator, key, function in _KERNELS:
        library.impl(operator, function, key)  # type: ignore[no-untyped-call]  # torch does not type it
    accelerator.route()
    torch.serialization.add_safe_globals([rebuild])
    _refuse_what_crashes()
    return library


def _hooks() -> torch._C._acc.PrivateUse1Hooks:
    # Defined when it is needed: torch before 2.10 lacks what it stands on.
    class Hooks(torch._C._acc.PrivateUse1Hooks):
        def is_available(self) -> bool:
            return True

        def is_built(self) -> bool:
            return True

        def has_primary_context(self, index: int) -> bool:
            return active.simulator().initialized

    return Hooks()


def _empty(
    size: list[int],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> DeviceTensor:
    _refuse_pinned(pin_memory)
    kind = torch.get_default_dtype() if dtype is None else dtype
    form = torch.contiguous_format if memory_format is None else memory_format

    def make() -> torch.Tensor:
        return torch.empty(size, dtype=kind, device="cpu", memory_format=form)

    return empty_on(SimTensor, active.simulator().device(device), math.prod(size) * kind.itemsize, make)


def _empty_strided(
    size: list[int],
    stride: list[int],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> DeviceTensor:
    _refuse_pinned(pin_memory)
    kind = torch.get_default_dtype() if dtype is None else dtype
    spans = [(extent - 1) * step for extent, step in zip(size, stride, strict=True)]
    elements = 1 + sum(spans) if math.prod(size) else 0

    def make() -> torch.Tensor:
        return torch.empty_strided(size, stride, dtype=kind, device="cpu")

    return empty_on(SimTensor, active.simulator().device(device), elements * kind.itemsize, make)


def _copy_from(source: torch.Tensor, destination: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    return copy_(destination, source, non_blocking)


def _read_scalar(tensor: torch.Tensor) -> bool | int | float | complex:
    # torch reads scalars straight from the device when it makes a tensor of a list of them.
    return tensor.cpu().item()


def _triangle(find: Callable[..., torch.Tensor]) -> Callable[..., DeviceTensor]:
    # torch has one of these for each device type, and none for those of backends in Python.
    def indices(
        row: int,
        col: int,
        offset: int = 0,
        *,
        dtype: torch.dtype | None = None,
        layout: torch.layout | None = None,
        device: torch.device | None = None,
        pin_memory: bool | None = None,
    ) -> DeviceTensor:
        _refuse_pinned(pin_memory)
        found = find(row, col, offset, dtype=torch.int64 if dtype is None else dtype, device="cpu")
        made = _empty(list(found.shape), dtype=found.dtype, device=device)
        write(made, found)
        return made

    return indices


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    # Whole where no gradient is wanted, so that the host's fused kernel runs and gives the host's very numbers.
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
        run = torch.ops.aten._scaled_dot_product_attention_math
        result: torch.Tensor = run(
            query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
        )[0]
        return result
    with torch._C._AutoDispatchBelowAutograd():
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )


def _refuse_pinned(pin_memory: bool | None) -> None:
    if pin_memory:
        raise RuntimeError("only host tensors can be pinned")


def _is_pinned(tensor: torch.Tensor, device: torch.device | None = None) -> bool:
    return active.simulator().pinned.is_pinned(tensor)


def _pin_memory(tensor: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    return active.simulator().pinned.empty_tensor(tensor).copy_(tensor)


def _refuse_what_crashes() -> None:
    """torch ends the process when it makes a raw storage on a device whose allocator is not C++: raise instead."""
    untyped = torch.UntypedStorage
    make: Callable[..., torch.UntypedStorage] = untyped.__new__

    def guarded(cls: type[torch.UntypedStorage], *args: object, **kwargs: object) -> torch.UntypedStorage:
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == DEVICE_TYPE:  # type: ignore[call-overload]  # checked by torch
            _refuse_storage()
        return make(cls, *args, **kwargs)

    untyped.__new__ = guarded  # type: ignore[method-assign,assignment]  # the one place all raw storages pass


def _refuse_storage() -> NoReturn:
    raise NotImplementedError(
        f"a raw storage cannot be made on {DEVICE_TYPE}: make a tensor there instead, and load checkpoints with "
        "map_location='cpu' before moving them"
    )


_KERNELS: tuple[tuple[str, str, Callable[..., object]], ...] = (
    ("empty.memory_format", "PrivateUse1", _empty),
    ("empty_strided", "PrivateUse1", _empty_strided),
    ("_copy_from", "PrivateUse1", _copy_from),
    ("_local_scalar_dense", "PrivateUse1", _read_scalar),
    ("tril_indices", "PrivateUse1", _triangle(torch.tril_indices)),
    ("triu_indices", "PrivateUse1", _triangle(torch.triu_indices)),
    ("scaled_dot_product_attention", "AutogradPrivateUse1", _attention),
    ("is_pinned", "CPU", _is_pinned),
    ("_pin_memory", "CPU", _pin_memory),
)
