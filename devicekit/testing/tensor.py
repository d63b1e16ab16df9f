"""Tensors on the simulated accelerator: torch sees device ``sim:N``, an inner host tensor holds the bytes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from devicekit.testing import active
from devicekit.testing.dispatch import run
from devicekit.testing.errors import CaptureError, StaleTensor
from devicekit.testing.streams import SimStream
from devicekit.testing.wrapper import DeviceTensor

if TYPE_CHECKING:
    import numpy

__all__ = ["SimTensor", "rebuild"]


class SimTensor(DeviceTensor):
    """A tensor of device type ``sim``. Made by torch's own functions: ``torch.zeros(2, device="sim")``."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # torch's own idiom

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # the stubs give the type of the disabled one
        cls,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        return run(cls, func, args, dict(kwargs or {}))

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]  # an odd stub
        try:
            self._device().wait_for_host()
        except (CaptureError, StaleTensor) as error:
            return f"<tensor of shape {tuple(self.shape)} on {self.device}: {error}>"
        return f"{self._inner!r} on {self.device}"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)

    # What torch's C++ does with a raw pointer, it must not do here.

    def data_ptr(self) -> int:
        """The address on the device. It names the bytes; the host cannot read there."""
        if self._lease is None or self._lease.block is None:
            return 0
        return self._lease.block.address + int(self._inner.storage_offset()) * self._inner.element_size()

    def new_tensor(  # type: ignore[override]  # the stubs make keyword-only arguments positional
        self,
        data: object,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        requires_grad: bool = False,
    ) -> torch.Tensor:
        # torch's own puts the result on device 0, wherever this tensor is.
        return torch.tensor(
            data,
            dtype=self.dtype if dtype is None else dtype,
            device=self.device if device is None else device,
            requires_grad=requires_grad,
        )

    def tolist(self) -> list[Any]:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> numpy.ndarray[Any, Any]:
        if force:
            return self.detach().cpu().resolve_conj().resolve_neg().numpy()
        raise TypeError(
            f"a tensor on {self.device} cannot become a numpy array: copy it to the host with .cpu() first"
        )

    def __deepcopy__(self, memo: dict[int, object]) -> SimTensor:
        if id(self) in memo:
            return cast(SimTensor, memo[id(self)])
        if not self.is_leaf:
            raise RuntimeError(
                "only a tensor that no other was computed into can be copied deeply: detach it first"
            )
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
        super().backward(*args, **kwargs)  # type: ignore[no-untyped-call]  # torch does not type it

    # A parameter keeps its identity when a module moves: torch swaps contents, and needs to see inside.

    def __tensor_flatten__(self) -> tuple[list[str], int]:
        return ["_inner"], self.device.index

    @staticmethod
    def __tensor_unflatten__(
        inner: Mapping[str, torch.Tensor], index: int, outer_size: object, outer_stride: object
    ) -> SimTensor:
        return SimTensor(inner["_inner"], active.simulator().devices[index])


def rebuild(host: torch.Tensor, index: int, requires_grad: bool, is_parameter: bool) -> SimTensor:
    """Make a tensor on device `index` from its bytes on the host, as pickling does."""
    made = cast(SimTensor, host.to(torch.device(active.DEVICE_TYPE, index)))
    if is_parameter:
        return cast(SimTensor, torch.nn.Parameter(made, requires_grad))
    return cast(SimTensor, made.requires_grad_(requires_grad))
