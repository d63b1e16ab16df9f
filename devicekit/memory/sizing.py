"""How many pages of keys and values fit: the arithmetic, with every term on view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from devicekit.contract.errors import ConfigurationError, DeviceKitError
from devicekit.memory.kv import KVLayout
from devicekit.ranges import OutOfRange, finite, whole

_TABLE_ENTRY_BYTES = 4  # the request table on the device holds int32 page numbers


class NotEnoughMemory(DeviceKitError):
    """Not even one request of minimal length fits. ``needed_bytes`` and ``usable_bytes`` say by how much."""

    def __init__(self, message: str, *, needed_bytes: int = 0, usable_bytes: int = 0) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.usable_bytes = usable_bytes


@dataclass(frozen=True, slots=True)
class KVPlan:
    """A KV pool that fits, and how its size came about. All sizes in bytes.

    ``usable = available * fraction - reserve``; of that, the request table and the padding page come
    first, and whole pages take what is left, up to ``max_tokens``. ``None``: the device does not say.
    """

    available_bytes: int | None
    fraction: float
    reserve_bytes: int
    usable_bytes: int | None
    bytes_per_token: int
    page_size: int  # tokens
    page_bytes: int
    max_running: int  # requests
    table_bytes: int
    num_pages: int  # without the padding page
    pool_bytes: int  # with the padding page; of both pools, where there are two
    unused_bytes: int | None  # of the usable ones
    # Where layers with a window have a smaller pool of their own, everything above is about the other layers'.
    window_pages: int | None = None  # without the padding page; None: there is one pool
    window_page_bytes: int | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that the pool holds."""
        return self.num_pages * self.page_size


def plan_kv(
    available_bytes: int | None,
    layout: KVLayout,
    *,
    page_size: int,
    max_running: int,
    max_positions: int,
    fraction: float = 0.9,
    reserve_bytes: int = 0,
    min_tokens: int = 2,
    max_tokens: int | None = None,
    companions: Sequence[KVLayout] = (),
) -> KVPlan:
    """Size a pool for the memory that is available once the weights are loaded.

    ``fraction`` of ``available_bytes`` may be used, less ``reserve_bytes`` for activations and whatever
    else comes later. ``min_tokens`` is the shortest request worth serving: one token in, one out.
    ``max_tokens`` bounds the pool; it is all there is to go by where ``available_bytes`` is unknown.
    ``companions`` are other models' layouts, whose keys and values have buffers over the same pages.

    Raises NotEnoughMemory when a request of ``min_tokens`` does not fit, and ConfigurationError for an
    argument out of range.
    """
    _check(page_size, max_running, max_positions, fraction, reserve_bytes, min_tokens)
    if max_tokens is not None:
        whole("max_tokens", max_tokens, least=min_tokens)
    token_bytes = sum(one.bytes_per_token for one in (layout, *companions))
    page_bytes = page_size * token_bytes
    table_bytes = (max_running + 1) * -(-max_positions // page_size) * _TABLE_ENTRY_BYTES
    wanted = None if max_tokens is None else -(-max_tokens // page_size)
    usable = unused = None
    if available_bytes is not None:
        usable = int(available_bytes * fraction) - reserve_bytes
        needed = table_bytes + (1 + -(-min_tokens // page_size)) * page_bytes
        if usable < needed:
            usable = max(usable, 0)
            raise NotEnoughMemory(
                f"not enough memory for one request of {min_tokens} tokens: {needed:,} bytes needed, {usable:,} "
                f"usable ({available_bytes:,} available x {fraction:g} - {reserve_bytes:,} reserved)",
                needed_bytes=needed,
                usable_bytes=usable,
            )
        # Pages that take no memory are as many as requests can ask for.
        most = table_bytes // _TABLE_ENTRY_BYTES
        fitting = (usable - table_bytes) // page_bytes - 1 if page_bytes else most
        wanted = fitting if wanted is None else min(wanted, fitting)
        unused = usable - table_bytes - (wanted + 1) * page_bytes
    if wanted is None:
        raise ConfigurationError(
            "the device does not say how much memory is free: give the pool a size in tokens"
        )
    return KVPlan(
        available_bytes=available_bytes,
        fraction=fraction,
        reserve_bytes=reserve_bytes,
        usable_bytes=usable,
        bytes_per_token=token_bytes,
        page_size=page_size,
        page_bytes=page_bytes,
        max_running=max_running,
        table_bytes=table_bytes,
        num_pages=wanted,
        pool_bytes=(wanted + 1) * page_bytes,
        unused_bytes=unused,
    )


def _check(
    page_size: int,
    max_running: int,
    max_positions: int,
    fraction: float,
    reserve_bytes: int,
    min_tokens: int,
) -> None:
    finite("fraction", fraction, above=0)
    if fraction > 1:
        raise OutOfRange(f"fraction must be at most 1, not {fraction}")
    for name, count, least in (
        ("page_size", page_size, 1),
        ("max_running", max_running, 1),
        ("max_positions", max_positions, 1),
        ("reserve_bytes", reserve_bytes, 0),
        ("min_tokens", min_tokens, 1),
    ):
        whole(name, count, least=least)
