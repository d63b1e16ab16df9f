"""Where keys and values live: one pair of buffers per layer, addressed by token slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import torch

from devicekit.memory.errors import MemoryReleased
from devicekit.ranges import MOST_IDS, whole

if TYPE_CHECKING:
    from devicekit.device import Device

PADDING_SLOT = 0
"""First slot of page 0. It is zero when the pool is made and no request is ever given it."""


_NOTHING = (0, 1, 1, 1)  # the shape of what models without keys and values leave behind


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The shape of the keys and values of one token in every layer of a model."""

    num_layers: int
    num_kv_heads: int
    key_dim: int  # elements of one head's key
    value_dim: int  # elements of one head's value
    dtype: torch.dtype
    windows: tuple[
        int | None, ...
    ] = ()  # per layer, keys visible to a token, itself included; None or (): all

    def __post_init__(self) -> None:
        shape = (self.num_layers, self.num_kv_heads, self.key_dim, self.value_dim)
        if shape != _NOTHING:
            for name in ("num_layers", "num_kv_heads", "key_dim", "value_dim"):
                whole(name, getattr(self, name), least=1)
        if self.windows and len(self.windows) != self.num_layers:
            raise ValueError(f"{len(self.windows)} windows were given for {self.num_layers} layers")

    @classmethod
    def nothing(cls, dtype: torch.dtype) -> KVLayout:
        """The layout of a model that keeps no keys and values: its pages are numbers, and take no memory."""
        return cls(*_NOTHING, dtype)

    @property
    def window(self) -> int | None:
        """How many keys, its own included, a token reads at most in any layer; None: all, in some layer."""
        limits = [window for window in self.windows if window is not None]
        return max(limits) if limits and len(limits) == self.num_layers else None

    @property
    def partial_window(self) -> int | None:
        """How many keys a token reads in layers with a window, where other layers have none; None otherwise."""
        limits = [window for window in self.windows if window is not None]
        return max(limits) if limits and len(limits) < self.num_layers else None

    @property
    def windowed_layers(self) -> int:
        """Number of layers with a window."""
        return sum(window is not None for window in self.windows)

    @property
    def bytes_per_token_and_layer(self) -> int:
        """Bytes that one token takes in one layer, key and value together."""
        return self.num_kv_heads * (self.key_dim + self.value_dim) * self.dtype.itemsize

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes over all layers, key and value together."""
        return self.num_layers * self.bytes_per_token_and_layer


class KVPool:
    """Key and value buffers of ``num_pages`` usable pages, and page 0 for padding, on one device.

    ``key(layer)`` and ``value(layer)`` are ``[(num_pages + 1) * page_size, num_kv_heads, dim]``; the
    first index is the token slot, ``page * page_size + position % page_size``. Which pages belong to
    whom is the page allocator's business.

    With ``window_pages`` the layers that have a window hold only so many pages, numbered by themselves:
    see `devicekit.memory.attached_pages`.

    Only the padding slot is initialised: the contents of any other slot are unspecified until they are
    written, so readers must send positions that do not exist to the padding slot.
    """

    def __init__(
        self,
        device: Device,
        layout: KVLayout,
        num_pages: int,
        page_size: int,
        *,
        window_pages: int | None = None,
    ) -> None:
        """Allocates everything at once; raises ValueError for a pool without pages, or without such layers."""
        whole("num_pages", num_pages, least=1, most=MOST_IDS)
        whole("page_size", page_size, least=1)
        if window_pages is not None:
            whole("window_pages", window_pages, least=1, most=MOST_IDS)
        if window_pages is not None and layout.partial_window is None:
            raise ValueError(f"window_pages={window_pages} need layers with a window beside others: {layout}")
        self.device = device
        self.layout = layout
        self.num_pages = num_pages
        self.page_size = page_size
        self.window_pages = window_pages
        # Few kernels index or scatter 8-bit floats, and every device can move bytes.
        self._stored_as_bytes = layout.dtype.is_floating_point and layout.dtype.itemsize == 1
        self._keys, self._values = self._allocate_all()

    @property
    def num_slots(self) -> int:
        """Token slots of a layer that keeps every page, those of the padding page included."""
        return (self.num_pages + 1) * self.page_size

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, the padding page included."""
        slots = sum(self._slots(layer) for layer in range(self.layout.num_layers))
        return slots * self.layout.bytes_per_token_and_layer

    def companion(self, layout: KVLayout) -> KVPool:
        """Buffers of another model over the same page ids, such as a draft's: no allocator or table of its own.

        Each of its layers holds every page.
        """
        return KVPool(self.device, layout, self.num_pages, self.page_size)

    def key(self, layer: int) -> torch.Tensor:
        """The keys of one layer, in the layout's dtype: a view, not a copy."""
        return self._keys[layer].view(self.layout.dtype)

    def value(self, layer: int) -> torch.Tensor:
        """The values of one layer, in the layout's dtype: a view, not a copy."""
        return self._values[layer].view(self.layout.dtype)

    def write(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store ``key`` and ``value`` (``[T, num_kv_heads, dim]``) at ``slots`` (``[T]``, int64)."""
        self._keys[layer].index_copy_(0, slots, self._encode(key))
        self._values[layer].index_copy_(0, slots, self._encode(value))

    def read(self, layer: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of key and value at ``slots`` (int64, any shape): ``[*slots.shape, num_kv_heads, dim]``."""
        flat = slots.reshape(-1)
        key = self._keys[layer].index_select(0, flat).view(self.layout.dtype)
        value = self._values[layer].index_select(0, flat).view(self.layout.dtype)
        return key.view(*slots.shape, *key.shape[1:]), value.view(*slots.shape, *value.shape[1:])

    def page_rows(self) -> list[torch.Tensor]:
        """Every buffer as bytes, ``[num_pages + 1, bytes per page]``: views, keys before values.

        ValueError where layers with a window have pages of their own.
        """
        if self.window_pages is not None:
            raise ValueError("layers with a window have pages of their own in this pool")
        return [
            buffer.view(self.num_pages + 1, -1).view(torch.uint8)
            for buffers in (self._keys, self._values)
            for buffer in (buffers[layer] for layer in range(self.layout.num_layers))
        ]

    def release(self) -> int:
        """Free the memory of all buffers, contents and all, until `resume`; returns its bytes."""
        self.device.synchronize()  # a kernel may still be reading them
        self._keys = self._values = _Released()
        return self.nbytes

    def resume(self) -> int:
        """Allocate the buffers again, with unspecified contents; returns their bytes."""
        self._keys, self._values = self._allocate_all()
        return self.nbytes

    def _allocate_all(self) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        layout, layers = self.layout, range(self.layout.num_layers)
        keys = [self._allocate(self._slots(layer), layout.key_dim) for layer in layers]
        return keys, [self._allocate(self._slots(layer), layout.value_dim) for layer in layers]

    def _slots(self, layer: int) -> int:
        if self.window_pages is None or self.layout.windows[layer] is None:
            return self.num_slots
        return (self.window_pages + 1) * self.page_size

    def _allocate(self, slots: int, dim: int) -> torch.Tensor:
        stored = torch.uint8 if self._stored_as_bytes else self.layout.dtype
        shape = (slots, self.layout.num_kv_heads, dim)
        buffer = torch.empty(shape, dtype=stored, device=self.device.torch_device)
        buffer[PADDING_SLOT] = 0
        return buffer

    def _encode(self, rows: torch.Tensor) -> torch.Tensor:
        dtype = self.layout.dtype
        if rows.dtype == dtype:
            return rows.view(torch.uint8) if self._stored_as_bytes else rows
        if not self._stored_as_bytes:
            return rows.to(dtype)
        # A plain cast turns what 8 bits cannot hold into NaN; the nearest number it can hold is the better error.
        limit = torch.finfo(dtype).max
        return rows.clamp(-limit, limit).to(dtype).view(torch.uint8)


class _Released(Sequence[torch.Tensor]):
    """Stands in for the buffers while they are released, so that using them raises without a check before."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: object) -> NoReturn:
        raise MemoryReleased("the KV pool's memory is released: resume it first")
