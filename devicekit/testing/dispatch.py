"""Runs torch's operators for the device: on the inner host tensors, in stream order, results wrapped again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch

from devicekit.testing import active
from devicekit.testing.copies import copy_, to_copy
from devicekit.testing.errors import WrongDevice
from devicekit.testing.graphs import Written
from devicekit.testing.imagining import imagined
from devicekit.testing.operators import OperatorTraits, traits_of
from devicekit.testing.sim_device import SimDevice
from devicekit.testing.wrapper import DeviceTensor, wrap

__all__ = ["run"]


def run(
    cls: type[DeviceTensor], func: torch._ops.OpOverload, args: Sequence[object], kwargs: dict[str, object]
) -> object:
    """Run one operator, and wrap its results as `cls`.

    Raises WrongDevice for operands on different devices, StaleTensor for those of another machine, and
    torch.OutOfMemoryError.
    """
    special = _SPECIAL.get(func)
    if special is not None:
        return special(*args, **kwargs)
    if traits_of(func).composite:
        return func.decompose(*args, **kwargs)
    return _run(cls, func, args, kwargs)


def _run(
    cls: type[DeviceTensor], func: torch._ops.OpOverload, args: Sequence[object], kwargs: dict[str, object]
) -> object:
    traits = traits_of(func)
    unwrapper = _Unwrapper(traits)
    inner_args = [unwrapper(arg) for arg in args]
    inner_kwargs = {name: unwrapper(value) for name, value in kwargs.items()}
    device = unwrapper.device
    if device is None:
        raise RuntimeError(f"{traits.name} reached {active.DEVICE_TYPE} without a tensor of it")
    target = _redirect(inner_kwargs, device)
    if target is not device:
        # A factory like zeros_like(x, device=...): it takes x's shape, and none of its bytes.
        made = func(*inner_args, **inner_kwargs)
        return made if target is None else wrap(cls, made, target)
    if traits.is_view:
        return _view(cls, func, args, inner_args, inner_kwargs, device)
    if traits.reshapes:
        return _reshape(cls, func, args, kwargs, inner_args, inner_kwargs, device)
    if traits.waits or (traits.takes_masks and _counts_hits(args, device)):
        device.wait_for_host()

    def run() -> object:
        if traits.is_random:
            return _run_random(func, traits, inner_args, inner_kwargs, device)
        return func(*inner_args, **inner_kwargs)

    graph = device.capturing
    if graph is None:
        out = device.run_kernel(traits.name, run)
    else:
        for tensor in unwrapper.tensors:
            graph.refer(tensor._lease)
        out = graph.note(
            run,
            writes=_written_before(traits, args, kwargs, device),
            result=_only_written(traits, inner_args, inner_kwargs),
            imagine=lambda: imagined(func, inner_args, inner_kwargs),
        )
    return _finish(cls, out, args, kwargs, device, traits)


def _reshape(
    cls: type[DeviceTensor],
    func: torch._ops.OpOverload,
    args: Sequence[object],
    kwargs: dict[str, object],
    inner_args: list[object],
    inner_kwargs: dict[str, object],
    device: SimDevice,
) -> object:
    """Run an operator that changes how its first argument lies in memory: the host's work, and no kernel."""
    inner_args[0] = cast(DeviceTensor, args[0])._alias()
    out = func(*inner_args, **inner_kwargs)
    return _finish(cls, out, args, kwargs, device, traits_of(func))


def _counts_hits(args: Sequence[object], device: SimDevice) -> bool:
    """True where the host has to learn how many elements a mask selects. Raises CaptureError for a host index."""
    indices = [index for index in cast("Sequence[object]", args[1]) if isinstance(index, torch.Tensor)]
    if any(not isinstance(index, DeviceTensor) for index in indices):
        device.refuse_capture("an index on the host")
    if not any(index.dtype in (torch.bool, torch.uint8) for index in indices):
        return False
    value = args[2] if len(args) > 2 else None
    # One number fills what a mask selects, however much that is.
    return not isinstance(value, torch.Tensor) or value.numel() != 1


def _only_written(
    traits: OperatorTraits, args: Sequence[object], kwargs: Mapping[str, object]
) -> Written | None:
    """The result of an operator that returns nothing but arguments it wrote to; None for any other."""
    if None in traits.returned:
        return None
    results = [_argument(at, args, kwargs) for at in traits.returned if at is not None]
    if not results:
        return Written(None)
    return Written(results[0] if len(results) == 1 else tuple(results))


def _written_before(
    traits: OperatorTraits, args: Sequence[object], kwargs: Mapping[str, object], device: SimDevice
) -> list[torch.Tensor]:
    """The inner tensors that an operator writes to and that were there before the capture began."""
    values = [_argument(at, args, kwargs) for at in traits.written]
    tensors = [item for value in values for item in (value if isinstance(value, tuple | list) else (value,))]
    return [
        tensor._inner
        for tensor in tensors
        if isinstance(tensor, DeviceTensor) and not tensor._is_of(device.capturing)
    ]


def _argument(at: tuple[int, str], args: Sequence[object], kwargs: Mapping[str, object]) -> object:
    position, name = at
    return args[position] if position < len(args) else kwargs.get(name)


class _Unwrapper:
    """Takes inner tensors out of arguments, and makes sure that all are on one device."""

    __slots__ = ("device", "tensors", "traits")

    def __init__(self, traits: OperatorTraits) -> None:
        self.traits = traits
        self.device: SimDevice | None = None
        self.tensors: list[DeviceTensor] = []

    def __call__(self, value: object) -> object:
        if isinstance(value, DeviceTensor):
            return self._inner_of(value)
        if isinstance(value, torch.Tensor):
            if value.dim() and not self.traits.host_indices:
                raise WrongDevice(
                    f"{self.traits.name}: expected all tensors on the same device, but found {active.DEVICE_TYPE} "
                    f"and {value.device}"
                )
            return value
        if isinstance(value, tuple | list):
            return [self(item) for item in value]
        return value

    def _inner_of(self, tensor: DeviceTensor) -> torch.Tensor:
        device = tensor._device()
        if self.device is None:
            self.device = device
        elif device is not self.device and tensor.dim():
            raise WrongDevice(
                f"{self.traits.name}: expected all tensors on the same device, but found "
                f"{active.DEVICE_TYPE}:{self.device.index} and {tensor.device}"
            )
        self.tensors.append(tensor)
        return tensor._inner


def _redirect(kwargs: dict[str, object], device: SimDevice) -> SimDevice | None:
    """Point a ``device=`` argument at the host, where the inner tensors are; None if it asked for the host."""
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


def _view(
    cls: type[DeviceTensor],
    func: torch._ops.OpOverload,
    args: Sequence[object],
    inner_args: Sequence[object],
    inner_kwargs: Mapping[str, object],
    device: SimDevice,
) -> object:
    base = next(arg for arg in args if isinstance(arg, DeviceTensor))
    # A view of a tensor that was made outside inference mode is none of that mode's either: they share a version.
    with torch.inference_mode(base.is_inference()):
        made = wrap(cls, func(*inner_args, **inner_kwargs), device)
        for view in made if isinstance(made, tuple | list) else (made,):
            torch._functionalize_unsafe_set(view, base)
    return made


def _finish(
    cls: type[DeviceTensor],
    out: object,
    args: Sequence[object],
    kwargs: dict[str, object],
    device: SimDevice,
    traits: OperatorTraits,
) -> object:
    returned = traits.returned
    if not any(returned):
        return wrap(cls, out, device)
    single = not isinstance(out, tuple | list)
    results = cast(Iterable[object], (out,) if single else out)
    finished: list[object] = []
    for result, written in zip(results, returned, strict=False):
        if written is None:
            finished.append(wrap(cls, result, device))
            continue
        outer = _argument(written, args, kwargs)
        if isinstance(outer, DeviceTensor):
            _refresh(outer, device)
        finished.append(outer)
    return finished[0] if single else type(cast("list[object]", out))(finished)


def _refresh(outer: DeviceTensor, device: SimDevice) -> None:
    """Bring a tensor's shape up to date when an operator changed that of its inner tensor."""
    inner = outer._inner
    if inner.shape == outer.shape and inner.stride() == outer.stride():
        return
    with torch.inference_mode(outer.is_inference()):
        outer.data = type(outer)(inner, device)


def _is_pinned(tensor: DeviceTensor, device: object = None) -> bool:
    return False


_SPECIAL: dict[torch._ops.OpOverload, Callable[..., object]] = {
    torch.ops.aten.copy_.default: copy_,
    torch.ops.aten._to_copy.default: to_copy,
    torch.ops.aten.is_pinned.default: _is_pinned,
}
