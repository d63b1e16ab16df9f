"""Builds the KV cache manager that a model needs."""

from __future__ import annotations

from devicekit.contract.errors import ConfigurationError
from devicekit.memory.attached_pages import AttachedAllocator, PairedAllocator
from devicekit.memory.pages import PageAllocator, PagePool
from devicekit.memory.prefix import PrefixCache
from devicekit.memory.rows import RequestTable
from devicekit.scheduling.batch import ModelLimits
from devicekit.scheduling.kv_cache.layers import LayerCacheManager
from devicekit.scheduling.kv_cache.manager import KVCacheManager
from devicekit.scheduling.kv_cache.recurrent_state import RecurrentStateManager
from devicekit.scheduling.kv_cache.sliding_window import SlidingWindowManager
from devicekit.scheduling.kv_cache.state_snapshots import StateSnapshotManager
from devicekit.scheduling.kv_cache.window_pages import WindowPagesManager
from devicekit.scheduling.limits import SchedulerLimits


def build_kv_cache(
    table: RequestTable, limits: SchedulerLimits, model: ModelLimits, states: PageAllocator | None
) -> KVCacheManager:
    """A KV cache manager with what the layers of a model need.

    Raises:
        ConfigurationError: the sizes do not fit the model.
    """
    if limits.window_pages is not None:
        if model.partial_window is None or states is not None:
            raise ConfigurationError(
                "window_pages are for models without recurrent layers in which some layers have a window "
                "and others have none"
            )
        return _with_window_pages(table, limits, model.partial_window, limits.window_pages)
    if states is not None:
        return _recurrent(table, limits, states)
    pages = PageAllocator(limits.num_pages, checked=limits.checked)
    prefix = _prefix(limits, pages) if limits.prefix_caching else None
    layers: list[LayerCacheManager] = []
    if model.window is not None:
        layers.append(SlidingWindowManager(table, pages, limits.page_size, prefix, model.window))
    return KVCacheManager(table, pages, limits.page_size, prefix, layers)


def _with_window_pages(
    table: RequestTable, limits: SchedulerLimits, window: int, count: int
) -> KVCacheManager:
    pages, size = PairedAllocator(limits.num_pages, count, checked=limits.checked), limits.page_size
    layer = WindowPagesManager(table, pages, size, window=window, max_batch_tokens=limits.max_batch_tokens)
    prefix = _prefix(limits, pages.bare) if limits.prefix_caching else None
    return KVCacheManager(table, pages.bare, size, prefix, [layer], decode_pages=pages)


def _recurrent(table: RequestTable, limits: SchedulerLimits, slots: PageAllocator) -> KVCacheManager:
    size, states = limits.page_size, RecurrentStateManager(table, slots)
    if not (limits.prefix_caching and limits.state_snapshots):
        pages = PageAllocator(limits.num_pages, checked=limits.checked)
        return KVCacheManager(table, pages, size, None, [states])
    bearing = AttachedAllocator(limits.num_pages, limits.state_snapshots, checked=limits.checked)
    snapshots = StateSnapshotManager(table, bearing, size, states)
    return KVCacheManager(table, bearing, size, _prefix(limits, bearing), [states, snapshots])


def _prefix(limits: SchedulerLimits, pages: PagePool) -> PrefixCache:
    return PrefixCache(pages, limits.page_size, policy=limits.eviction)
