"""Faults in the operators that an engine sends to a device: the hooks are honest, the arithmetic is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from devicekit_conformance.selftest.honest import Honest

Change = Callable[[torch.Tensor], torch.Tensor]


class _Elsewhere(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's mode has no types
    """Changes what one operator gives back on the simulated device, for as long as the process lives."""

    def __init__(self, operator: str, change: Change) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._operator, self._change = operator, change

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **dict(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type == "sim":
            return self._change(result) if str(func).split(".")[1] == self._operator else result
        return result


class _WrongOperator(Honest):
    operator: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        _Elsewhere(self.operator, self.change).__enter__()  # type: ignore[no-untyped-call]

    @staticmethod
    def change(result: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class CopiesAreShifted(_WrongOperator):
    """clone() moves every row by one."""

    caught_by = "DK-OPER-001"
    operator = "clone"

    @staticmethod
    def change(result: torch.Tensor) -> torch.Tensor:
        return result.roll(1, 0) if result.dim() else result


class CountsFromOne(_WrongOperator):
    """zeros() is filled with ones."""

    caught_by = "DK-OPER-002"
    operator = "zeros"

    @staticmethod
    def change(result: torch.Tensor) -> torch.Tensor:
        return result.fill_(1)


class SelectsTheFirst(_WrongOperator):
    """A permuted view is read as if it lay in order."""

    caught_by = "DK-OPER-003"
    operator = "permute"

    @staticmethod
    def change(result: torch.Tensor) -> torch.Tensor:
        return result.flip(-1) if result.dim() else result


class ReadsTheNextRow(_WrongOperator):
    """index_select() gives the row beside the one that was asked for."""

    caught_by = "DK-OPER-004"
    operator = "index_select"

    @staticmethod
    def change(result: torch.Tensor) -> torch.Tensor:
        return result.roll(1, 0)


class AddsIn32Bits(_WrongOperator):
    """Whole numbers of 64 bits are added in 32."""

    caught_by = "DK-OPER-005"
    operator = "add"

    @staticmethod
    def change(result: torch.Tensor) -> torch.Tensor:
        return result.to(torch.int32).to(result.dtype) if result.dtype is torch.int64 else result


class MaskIsOffByOne(_WrongOperator):
    """A comparison's result is moved by one place."""

    caught_by = "DK-OPER-006"
    operator = "le"

    @staticmethod
    def change(result: torch.Tensor) -> torch.Tensor:
        return result.roll(1, -1) if result.dim() else result


class SumsWithoutTheLast(_WrongOperator):
    """cumsum() leaves out the place itself."""

    caught_by = "DK-OPER-007"
    operator = "cumsum"

    @staticmethod
    def change(result: torch.Tensor) -> torch.Tensor:
        return result.roll(1, -1)


class MultipliesAllButTheLast(_WrongOperator):
    """The last column of a matrix product is not written."""

    caught_by = "DK-OPER-008"
    operator = "mm"

    @staticmethod
    def change(result: torch.Tensor) -> torch.Tensor:
        return torch.cat([result[:, :-1], torch.zeros_like(result[:, -1:])], dim=1)


class AttendsToNothing(_WrongOperator):
    """Fused attention gives back memory as it was."""

    caught_by = "DK-OPER-009"
    operator = "scaled_dot_product_attention"

    @staticmethod
    def change(result: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(result)


class AttendsToTheNeighbour(_WrongOperator):
    """Fused attention gives one head the result of another."""

    caught_by = "DK-ENGINE-004"
    operator = "scaled_dot_product_attention"

    @staticmethod
    def change(result: torch.Tensor) -> torch.Tensor:
        return result.roll(1, 1)
