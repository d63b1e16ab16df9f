"""Takes back a weight update that fails half-way. The old values are kept in host memory until its end."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from devicekit.contract.errors import DeviceKitError


class RolledBack(DeviceKitError):
    """Writing weights failed half-way, and every weight has its old value again."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        why = f"{type(self.cause).__name__}: {self.cause}"
        return f"Writing failed half-way ({why}) and was taken back: the weights are what they were."


class NothingKept(DeviceKitError):
    """There are no old values to put back: they would have taken too many bytes."""


class OldValues:
    """Old values of weights that are about to be written.

    Args:
        limit: bytes of host memory, at most. Of weights that are larger together, nothing is kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Until `keep` has returned no weight is written, and there is nothing to put back.
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] | None = []
        self._of: Hashable = None

    @property
    def kept(self) -> bool:
        """Whether they can be put back."""
        return self._kept is not None

    def are_of(self, state: Hashable) -> bool:
        """Whether they were kept in this state of the weights."""
        return self._of == state

    def keep(self, weights: Sequence[torch.Tensor], state: Hashable) -> None:
        """Copy weights to host memory, before the first of them is written.

        Args:
            state: something that is another once any weight has changed.
        """
        self._kept = []  # those of before go first: there need not be room for both
        if sum(one.nbytes for one in weights) <= self._limit:
            self._kept = [(one, one.detach().to("cpu", copy=True)) for one in weights]
        else:
            self._kept = None
        self._of = state

    def put_back(self) -> None:
        """Write the old values again. Does nothing if `keep` failed.

        Raises:
            NothingKept: there are none.
        """
        if self._kept is None:
            raise NothingKept("the old values were not kept in host memory")
        with torch.no_grad():
            for weight, old in self._kept:
                weight.copy_(old)
