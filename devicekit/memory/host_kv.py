"""A second level for keys and values: pages in host memory, and the copies between them and the device's pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from devicekit.contract.errors import ConfigurationError
from devicekit.memory.copies import Copier, Copy, copier_for
from devicekit.memory.errors import MemoryReleased
from devicekit.memory.kv import KVPool
from devicekit.memory.pages import PageAllocator
from devicekit.ranges import MOST_IDS, whole

if TYPE_CHECKING:
    from devicekit.device import Device

Int64 = npt.NDArray[np.int64]


class HostKVPool:
    """``num_pages`` pages in host memory for the contents of ``pool``, page-locked where that lets copies overlap.

    Host page 0 is never used, so that ids are those of a `PageAllocator`.
    """

    def __init__(
        self,
        device: Device,
        pool: KVPool,
        num_pages: int,
        *,
        companions: Sequence[KVPool] = (),
        copier: Copier | None = None,
    ) -> None:
        """Allocates everything at once. ``companions`` are buffers over the same pages, which travel with them.

        Raises:
            ConfigurationError: it has no pages, or layers with a window have pages of their own in ``pool``.
        """
        whole("num_pages", num_pages, least=1, most=MOST_IDS)
        if any(one.window_pages is not None for one in (pool, *companions)):
            raise ConfigurationError(
                "a host KV pool copies whole pages, and layers with a window have pages of their own here: "
                "do without one of the two"
            )
        self.pool = pool
        self._companions = tuple(companions)
        self.pages = PageAllocator(num_pages)
        self.copier = copier or copier_for(device)
        self._device = device
        self._page_bytes = [rows.shape[1] for rows in self._page_rows()]
        self._rows = self._allocate()

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, page 0 included."""
        return (self.pages.num_pages + 1) * sum(self._page_bytes)

    def store(self, device_pages: bytes, host_pages: bytes, owner: str) -> Copy:
        """Begin copying device pages to host pages (native int32 ids, as many of one as of the other)."""
        source, target = _paired(device_pages, host_pages)

        def work() -> None:
            index = torch.from_numpy(source).to(self._device.torch_device)
            for device_rows, host_rows in self._buffers():
                gathered = device_rows.index_select(0, index)
                for begin, end, first in _runs(target):
                    host_rows[first : first + end - begin].copy_(gathered[begin:end], non_blocking=True)

        return Copy(owner, len(source), self.copier.begin(work, blocks=False))

    def load(self, host_pages: bytes, device_pages: bytes, owner: str) -> Copy:
        """Begin copying host pages to device pages. Computation submitted from now on finds them there."""
        target, source = _paired(device_pages, host_pages)

        def work() -> None:
            index = torch.from_numpy(target).to(self._device.torch_device)
            for device_rows, host_rows in self._buffers():
                scattered = device_rows.new_empty((len(source), device_rows.shape[1]))
                for begin, end, first in _runs(source):
                    scattered[begin:end].copy_(host_rows[first : first + end - begin], non_blocking=True)
                device_rows.index_copy_(0, index, scattered)

        return Copy(owner, len(source), self.copier.begin(work, blocks=True))

    def release(self) -> int:
        """Free the host memory, contents and all, until `resume`; returns its bytes. No copy may be under way."""
        self._rows = _Released()
        return self.nbytes

    def resume(self) -> int:
        """Allocate the host memory again; returns its bytes."""
        self._rows = self._allocate()
        return self.nbytes

    def _buffers(self) -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs of ``[pages, bytes]``: a buffer on the device, and its counterpart here."""
        return [(rows, self._rows[at]) for at, rows in enumerate(self._page_rows())]

    def _page_rows(self) -> list[torch.Tensor]:
        return [rows for pool in (self.pool, *self._companions) for rows in pool.page_rows()]

    def _allocate(self) -> Sequence[torch.Tensor]:
        lock: Callable[[torch.Tensor], torch.Tensor] | None = None
        if self.copier.overlaps:
            lock = self._device.pin_memory
        buffers: list[torch.Tensor] = []
        for size in self._page_bytes:
            buffer = torch.empty((self.pages.num_pages + 1, size), dtype=torch.uint8)
            buffers.append(buffer if lock is None else lock(buffer))
        return buffers


def _paired(device_pages: bytes, host_pages: bytes) -> tuple[Int64, Int64]:
    """Both as arrays, in the order of the host pages: neighbours there can be copied in one go."""
    ours = np.frombuffer(device_pages, np.int32).astype(np.int64)
    theirs = np.frombuffer(host_pages, np.int32).astype(np.int64)
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} device pages cannot be copied to or from {len(theirs)} host pages")
    order = np.argsort(theirs)
    return ours[order], theirs[order]


def _runs(pages: Int64) -> list[tuple[int, int, int]]:
    """Runs of consecutive ids: (begin, end, first id), where begin and end index ``pages``."""
    if not len(pages):
        return []
    cuts = np.flatnonzero(np.diff(pages) != 1) + 1
    begins = [0, *cuts.tolist()]
    ends = [*cuts.tolist(), len(pages)]
    return [(begin, end, int(pages[begin])) for begin, end in zip(begins, ends, strict=True)]


class _Released(Sequence[torch.Tensor]):
    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: object) -> NoReturn:
        raise MemoryReleased("the host KV pool's memory is released: resume it first")
