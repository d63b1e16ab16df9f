"""Takes back a weight update that fails half-way: old values are kept in host memory until its end."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from types import TracebackType

import torch

from devicekit.contract.errors import DeviceKitError

_log = logging.getLogger(__name__)


class RolledBack(DeviceKitError):
    """Writing weights failed half-way, and every weight has its old value again."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        why = f"{type(self.cause).__name__}: {self.cause}"
        return f"Writing failed half-way ({why}) and was taken back: the weights are what they were."


class OldValues:
    """Old values of weights that are about to be written, if all of them together are not too many bytes.

    ::

        with OldValues(weights, limit) as old:
            old.keep(one)
            one.copy_(new)

    An exception within becomes `RolledBack` once everything that was kept is back in its place, and stays what it
    is where nothing was kept, or where putting it back fails too.

    Args:
        weights: all that may be written.
        limit: bytes of host memory, at most. Weights that are larger are not kept.
    """

    def __init__(self, weights: Iterable[torch.Tensor], limit: int) -> None:
        self.affordable = sum(one.nbytes for one in weights) <= limit
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(self, weight: torch.Tensor) -> None:
        """Copy a weight to host memory, once, before it is written."""
        if self.affordable:
            self._kept.append((weight, weight.detach().to("cpu", copy=True)))

    def __enter__(self) -> OldValues:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and self.affordable and self._put_back():
            raise RolledBack(error) from error

    def _put_back(self) -> bool:
        try:
            with torch.no_grad():
                for weight, old in reversed(self._kept):
                    weight.copy_(old)
        except Exception:
            _log.exception("the old values of %d weights could not be put back", len(self._kept))
            return False
        return True
