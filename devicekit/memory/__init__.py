"""Pools: pages, request rows, KV storage, recurrent states, host memory, the prefix cache, and their audit.

Bookkeeping is flat integer arrays on the host; device tensors hold only what kernels read. Slot, page and row 0
are padding and are never handed out.
"""

import devicekit.numpy_needed  # noqa: F401  # before whatever would fail without it
from devicekit.memory.audit import Conservation, TreeSanity, inspect_tree
from devicekit.memory.errors import (
    CacheInUse,
    DoubleFree,
    ForeignPage,
    MemoryReleased,
    PagesInUse,
    PoolError,
    StaleNode,
    UnknownPolicy,
)
from devicekit.memory.events import BlocksRemoved, BlocksStored, CacheCleared, EventFeed
from devicekit.memory.host_kv import HostKVPool
from devicekit.memory.kv import KVLayout, KVPool
from devicekit.memory.mirror import TableMirror
from devicekit.memory.pages import PageAllocator, PagePool, largest_free_run
from devicekit.memory.prefix import PrefixCache
from devicekit.memory.prefix_records import Insertion, Match, PrefixStats
from devicekit.memory.rows import RequestTable
from devicekit.memory.sizing import KVPlan, NotEnoughMemory, plan_kv
from devicekit.memory.state import StateLayout, StatePool, StateTensor

__all__ = [
    "BlocksRemoved",
    "BlocksStored",
    "CacheCleared",
    "CacheInUse",
    "Conservation",
    "DoubleFree",
    "EventFeed",
    "ForeignPage",
    "HostKVPool",
    "Insertion",
    "KVLayout",
    "KVPlan",
    "KVPool",
    "Match",
    "MemoryReleased",
    "NotEnoughMemory",
    "PageAllocator",
    "PagePool",
    "PagesInUse",
    "PoolError",
    "PrefixCache",
    "PrefixStats",
    "RequestTable",
    "StaleNode",
    "StateLayout",
    "StatePool",
    "StateTensor",
    "TableMirror",
    "TreeSanity",
    "UnknownPolicy",
    "inspect_tree",
    "largest_free_run",
    "plan_kv",
]
