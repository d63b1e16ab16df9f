"""Tensors on the simulated accelerator: torch sees device ``sim:N``, an inner host tensor holds the bytes."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch

from devicekit.testing import active
from devicekit.testing.operators import OperatorTraits, traits_of
from devicekit.testing.sim_device import Lease, SimDevice
from devicekit.testing.streams import SimStream
from devicekit.testing.transfer import device_to_device, device_to_host, fill_with_poison, host_to_device

__all__ = ["SimTensor", "copy_", "empty_on", "rebuild", "wrap"]

# Tensors that share a storage share one lease: which one, by the storage's identity.
_leases: weakref.WeakValueDictionary[int, Lease] = weakref.WeakValueDictionary()


class SimTensor(torch.Tensor):
    """A tensor of device type ``sim``. Made by torch's own functions: ``torch.zeros(2, device="sim")``."""

    _inner: torch.Tensor
    _lease: Lease | None

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: SimDevice) -> SimTensor:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]  # absent from torch's stubs
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(active.DEVICE_TYPE, device.index),
            storage_size=inner.untyped_storage().nbytes(),
        )
        return cast("SimTensor", made)

    def __init__(self, inner: torch.Tensor, device: SimDevice) -> None:
        self._inner = inner
        self._lease = _lease_for(inner, device)

    @classmethod
    def __torch_dispatch__(
        cls,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        special = _SPECIAL.get(func)
        if special is not None:
            return special(*args, **(kwargs or {}))
        return _run(func, args, dict(kwargs or {}))

    def __repr__(self, *, tensor_contents: object = None) -> str:
        self._device().wait_for_host()
        return f"{self._inner!r} on {self.device}"

    # What torch's C++ does with a raw pointer, it must not do here.

    def data_ptr(self) -> int:
        """The address on the device. It names the bytes; the host cannot read there."""
        if self._lease is None:
            return 0
        return self._lease.block.address + self._inner.storage_offset() * self._inner.element_size()

    def tolist(self) -> object:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> object:
        if force:
            return self.detach().cpu().resolve_conj().resolve_neg().numpy()
        raise TypeError(f"a tensor on {self.device} cannot become a numpy array: copy it to the host with .cpu() first")

    def __deepcopy__(self, memo: dict[int, object]) -> SimTensor:
        if id(self) in memo:
            return cast(SimTensor, memo[id(self)])
        if not self.is_leaf:
            raise RuntimeError("only a tensor that no other was computed into can be copied deeply: detach it first")
        with torch.no_grad():
            made = cast(SimTensor, self.detach().clone())
        made.requires_grad_(self.requires_grad)
        memo[id(self)] = made
        if self.grad is not None:
            made.grad = copy.deepcopy(self.grad, memo)
        own = {name: value for name, value in self.__dict__.items() if name not in ("_inner", "_lease")}
        made.__dict__.update(copy.deepcopy(own, memo))
        return made

    def __reduce_ex__(self, protocol: object) -> tuple[Callable[..., SimTensor], tuple[object, ...]]:
        is_parameter = isinstance(self, torch.nn.Parameter)
        return rebuild, (self.detach().cpu(), self.device.index, self.requires_grad, is_parameter)

    @property
    def data(self) -> torch.Tensor:
        return cast(torch.Tensor, torch.Tensor.data.__get__(self))  # type: ignore[attr-defined]  # a C descriptor

    @data.setter
    def data(self, fresh: torch.Tensor) -> None:
        if not isinstance(fresh, SimTensor):
            raise RuntimeError(f"the data of a tensor on {self.device} can only be another's on such a device")
        torch.Tensor.data.__set__(self, fresh)  # type: ignore[attr-defined]  # a C descriptor
        self._inner, self._lease = fresh._inner, fresh._lease

    def __dlpack__(self, *args: object, **kwargs: object) -> object:
        raise BufferError(f"a tensor on {self.device} cannot be exported: its memory is simulated")

    def share_memory_(self) -> SimTensor:
        raise NotImplementedError(f"memory of {self.device} cannot be shared between processes")

    def record_stream(self, stream: object) -> None:
        """Hold the memory active, once freed, until `stream` has done what it was given by then."""
        if not isinstance(stream, SimStream):
            raise TypeError(f"record_stream needs a torch.{active.DEVICE_TYPE}.Stream, not {stream!r}")
        if self._lease is not None and stream.stream_id != self._lease.stream_id:
            self._lease.users.add(stream)

    def backward(self, *args: object, **kwargs: object) -> None:
        if self.device.index:
            raise NotImplementedError(
                f"torch's autograd engine knows one device of a backend written in Python: run backward on "
                f"{active.DEVICE_TYPE}:0, not on {self.device}"
            )
        super().backward(*args, **kwargs)  # type: ignore[arg-type]  # torch's own defaults and checks apply

    # A parameter keeps its identity when a module moves: torch swaps contents, and needs to see inside.

    def __tensor_flatten__(self) -> tuple[list[str], int]:
        return ["_inner"], self.device.index

    @staticmethod
    def __tensor_unflatten__(
        inner: Mapping[str, torch.Tensor], index: int, outer_size: object, outer_stride: object
    ) -> SimTensor:
        return SimTensor(inner["_inner"], active.simulator().devices[index])

    def _device(self) -> SimDevice:
        return active.simulator().devices[self.device.index]


def empty_on(inner: torch.Tensor, device: SimDevice) -> SimTensor:
    """A tensor on `device` whose bytes are not initialised."""
    if device.machine.config.fill_uninitialized:
        fill_with_poison(inner)
    return SimTensor(inner, device)


def rebuild(host: torch.Tensor, index: int, requires_grad: bool, is_parameter: bool) -> SimTensor:
    """Make a tensor on device `index` from its bytes on the host, as pickling does."""
    made = cast(SimTensor, host.to(torch.device(active.DEVICE_TYPE, index)))
    if is_parameter:
        return cast(SimTensor, torch.nn.Parameter(made, requires_grad))
    return cast(SimTensor, made.requires_grad_(requires_grad))


def wrap(out: object, device: SimDevice) -> object:
    """Turn the host tensors in an operator's result into tensors on `device`."""
    if type(out) is torch.Tensor:
        return SimTensor(out, device)
    if isinstance(out, tuple | list):
        return type(out)([wrap(item, device) for item in out])
    return out


def _lease_for(inner: torch.Tensor, device: SimDevice) -> Lease | None:
    storage = inner.untyped_storage()
    key = storage._cdata
    lease = _leases.get(key)
    if lease is None:
        nbytes = storage.nbytes()
        if not nbytes:
            return None
        lease = _leases[key] = device.allocate(nbytes)
    return lease


# Running an operator.


def _run(func: torch._ops.OpOverload, args: Sequence[object], kwargs: dict[str, object]) -> object:
    traits = traits_of(func)
    unwrapper = _Unwrapper(traits)
    inner_args = [unwrapper(arg) for arg in args]
    inner_kwargs = {name: unwrapper(value) for name, value in kwargs.items()}
    device = unwrapper.device
    if device is None:
        raise RuntimeError(f"{traits.name} reached {active.DEVICE_TYPE} without a tensor of it")
    target = _redirect(inner_kwargs, device)
    if target is not device:
        raise NotImplementedError(f"{traits.name} cannot make its result on another device: use .to() on the result")
    if traits.is_view:
        return _finish_view(func(*inner_args, **inner_kwargs), args, device, traits)
    device.launch(traits.name)
    if traits.waits:
        device.wait_for_host()
    if traits.is_random:
        out = _run_random(func, traits, inner_args, inner_kwargs, device)
    else:
        out = func(*inner_args, **inner_kwargs)
    return _finish(out, args, kwargs, device, traits)


class _Unwrapper:
    """Takes inner tensors out of arguments, and makes sure that all are on one device."""

    __slots__ = ("device", "traits")

    def __init__(self, traits: OperatorTraits) -> None:
        self.traits = traits
        self.device: SimDevice | None = None

    def __call__(self, value: object) -> object:
        if isinstance(value, SimTensor):
            return self._inner_of(value)
        if isinstance(value, torch.Tensor):
            if value.dim() and not self.traits.host_indices:
                raise RuntimeError(
                    f"{self.traits.name}: expected all tensors on the same device, but found {active.DEVICE_TYPE} "
                    f"and {value.device}"
                )
            return value
        if isinstance(value, tuple | list):
            return [self(item) for item in value]
        return value

    def _inner_of(self, tensor: SimTensor) -> torch.Tensor:
        device, lease = self.device, tensor._lease
        index = tensor.device.index
        if device is None:
            machine = active.simulator()
            if index >= len(machine.devices):
                raise RuntimeError(f"this tensor's device {tensor.device} is of an earlier simulated machine")
            device = self.device = machine.devices[index]
        elif device.index != index and tensor.dim():
            raise RuntimeError(
                f"{self.traits.name}: expected all tensors on the same device, but found "
                f"{active.DEVICE_TYPE}:{device.index} and {tensor.device}"
            )
        if lease is not None and lease.device.machine is not device.machine:
            raise RuntimeError(f"this tensor on {tensor.device} is of an earlier simulated machine, and went with it")
        return tensor._inner


def _redirect(kwargs: dict[str, object], device: SimDevice) -> SimDevice | None:
    """Point a ``device=`` argument at the host, where the inner tensors are; None when it asked for the host itself."""
    if kwargs.get("pin_memory"):
        raise RuntimeError("only host tensors can be pinned")
    wanted = kwargs.get("device")
    if wanted is None:
        return device
    asked = torch.device(cast(str, wanted))
    if asked.type != active.DEVICE_TYPE:
        return None
    kwargs["device"] = torch.device("cpu")
    return device.machine.device(asked)


def _run_random(
    func: torch._ops.OpOverload,
    traits: OperatorTraits,
    args: list[object],
    kwargs: dict[str, object],
    device: SimDevice,
) -> object:
    if traits.takes_generator:
        if kwargs.get("generator") is None:
            kwargs["generator"] = device.generator
        return func(*args, **kwargs)
    # No argument for a generator: lend the device's state to the host's, so that the host's own does not move.
    host = torch.get_rng_state()
    torch.set_rng_state(device.generator.get_state())
    try:
        return func(*args, **kwargs)
    finally:
        device.generator.set_state(torch.get_rng_state())
        torch.set_rng_state(host)


def _finish_view(out: object, args: Sequence[object], device: SimDevice, traits: OperatorTraits) -> object:
    made = wrap(out, device)
    base = next(arg for arg in args if isinstance(arg, SimTensor))
    for view in made if isinstance(made, tuple | list) else (made,):
        torch._functionalize_unsafe_set(view, base)
    return made


def _finish(
    out: object, args: Sequence[object], kwargs: dict[str, object], device: SimDevice, traits: OperatorTraits
) -> object:
    returned = traits.returned
    if not any(returned):
        return wrap(out, device)
    single = not isinstance(out, tuple | list)
    results = cast(Iterable[object], (out,) if single else out)
    finished: list[object] = []
    for result, written in zip(results, returned, strict=False):
        if written is None:
            finished.append(wrap(result, device))
            continue
        position, name = written
        outer = args[position] if position < len(args) else kwargs[name]
        if isinstance(outer, SimTensor):
            _refresh(outer, device)
        finished.append(outer)
    return finished[0] if single else type(cast("list[object]", out))(finished)


def _refresh(outer: SimTensor, device: SimDevice) -> None:
    """Bring a tensor's shape up to date when an operator changed that of its inner tensor."""
    inner = outer._inner
    if inner.shape == outer.shape and inner.stride() == outer.stride():
        return
    fresh = SimTensor(inner, device)
    outer.data = fresh


# Operators that move data, or need more than their inner tensors.


def copy_(destination: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """Copy between any two of host and devices; returns `destination`."""
    machine = active.simulator()
    if not isinstance(destination, SimTensor):
        assert isinstance(source, SimTensor)
        device_to_host(source._device(), destination, source._inner, source._lease, non_blocking=non_blocking)
    elif not isinstance(source, SimTensor):
        host_to_device(destination._device(), destination._inner, source, non_blocking=non_blocking)
    elif source.device != destination.device:
        device_to_device(destination._device(), source._device(), destination._inner, source._inner)
    else:
        machine.devices[destination.device.index].launch("aten::copy_")
        destination._inner.copy_(source._inner)
    return destination


def _to_copy(
    source: SimTensor,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    non_blocking: bool = False,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    machine = active.simulator()
    form = torch.preserve_format if memory_format is None else memory_format
    target = source.device if device is None else torch.device(device)
    if target.type == "meta":
        return torch.empty_like(source._inner, dtype=dtype, device=target, memory_format=form)
    if target.type not in (active.DEVICE_TYPE, "cpu"):
        raise NotImplementedError(f"a tensor on {source.device} cannot be copied to {target}: go through the host")
    if target.type == "cpu":
        if dtype is not None and dtype != source.dtype:
            source = cast(SimTensor, _to_copy(source, dtype=dtype, memory_format=form))
        pinned = non_blocking or bool(pin_memory)
        host = torch.empty_like(source._inner, memory_format=form)
        if pinned:
            host = machine.pinned.empty_tensor(host)
            fill_with_poison(host)
        device_to_host(source._device(), host, source._inner, source._lease, non_blocking=non_blocking)
        return host
    like = torch.empty_like(source._inner, dtype=dtype or source.dtype, memory_format=form)
    made = SimTensor(like, machine.device(target))
    copy_(made, source)
    return made


def _is_pinned(tensor: SimTensor, device: object = None) -> bool:
    return False


_SPECIAL: dict[torch._ops.OpOverload, Callable[..., object]] = {
    torch.ops.aten.copy_.default: copy_,
    torch.ops.aten._to_copy.default: _to_copy,
    torch.ops.aten.is_pinned.default: _is_pinned,
}
