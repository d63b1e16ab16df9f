"""The pools of a scheduler, as its sizes and its model want them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devicekit.contract.errors import ConfigurationError
from devicekit.memory.attached_pages import AttachedAllocator, PairedAllocator
from devicekit.memory.pages import PageAllocator
from devicekit.memory.prefix import PrefixCache
from devicekit.memory.rows import RequestTable
from devicekit.scheduling.batch import ModelLimits
from devicekit.scheduling.kv import RequestKV
from devicekit.scheduling.pools.paired import PairedKV
from devicekit.scheduling.pools.snapshots import SnapshotKV

if TYPE_CHECKING:
    from devicekit.scheduling.scheduler import SchedulerLimits


def build_kv(
    table: RequestTable, limits: SchedulerLimits, model: ModelLimits, states: PageAllocator | None
) -> RequestKV:
    """The requests' hold on the pools that suits a model.

    Raises:
        ConfigurationError: the sizes do not fit the model.
    """
    count, size, checked = limits.num_pages, limits.page_size, limits.checked
    if limits.window_pages is not None:
        if model.partial_window is None or states is not None:
            raise ConfigurationError(
                "window_pages are for models without recurrent layers in which some layers have a window "
                "and others have none"
            )
        paired = PairedAllocator(count, limits.window_pages, checked=checked)
        prefix = PrefixCache(paired, size) if limits.prefix_caching else None
        return PairedKV(
            table,
            paired,
            size,
            prefix,
            window=model.partial_window,
            max_batch_tokens=limits.max_batch_tokens,
        )
    if states is not None and limits.prefix_caching and limits.state_snapshots:
        bearing = AttachedAllocator(count, limits.state_snapshots, checked=checked)
        return SnapshotKV(table, bearing, size, PrefixCache(bearing, size), states)
    pages = PageAllocator(count, checked=checked)
    caching = limits.prefix_caching and states is None
    return RequestKV(table, pages, size, PrefixCache(pages, size) if caching else None, states)
