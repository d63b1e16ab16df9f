"""Old names of `devicekit.scheduling.kv_cache`."""

from devicekit.renamed import renamed

__getattr__ = renamed(
    __name__,
    {
        "RequestKV": "devicekit.scheduling.kv_cache.manager:KVCacheManager",
        "Tier": "devicekit.scheduling.kv_cache.manager:CacheTier",
    },
)
