"""The KV cache as the scheduler sees it: one manager, and what layers of special kinds add to it.

`KVCacheManager` is all that the rest of the scheduler talks to: it gives requests rows and pages, shares prefixes,
says what a request may compute next, and accounts for every id. A plain model needs nothing else. What other
models need stands in a `LayerCacheManager` of their kind, which the manager asks at each of its steps:
`SlidingWindowManager` where every layer has a window, `WindowPagesManager` where only some have one,
`RecurrentStateManager` for recurrent layers, and `StateSnapshotManager` for prefixes of such models.
`HostCacheManager` is the cache's second tier, in host memory. `build_kv_cache` puts together what suits a model.
"""

from devicekit.scheduling.kv_cache.choice import build_kv_cache
from devicekit.scheduling.kv_cache.host_cache import HostCacheManager, attach_host_cache
from devicekit.scheduling.kv_cache.layers import LayerCacheManager
from devicekit.scheduling.kv_cache.manager import CacheTier, KVCacheManager
from devicekit.scheduling.kv_cache.recurrent_state import RecurrentStateManager
from devicekit.scheduling.kv_cache.sliding_window import SlidingWindowManager
from devicekit.scheduling.kv_cache.state_snapshots import StateSnapshotManager
from devicekit.scheduling.kv_cache.window_pages import WindowPagesManager

__all__ = [
    "CacheTier",
    "HostCacheManager",
    "KVCacheManager",
    "LayerCacheManager",
    "RecurrentStateManager",
    "SlidingWindowManager",
    "StateSnapshotManager",
    "WindowPagesManager",
    "attach_host_cache",
    "build_kv_cache",
]
