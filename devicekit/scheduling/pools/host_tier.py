"""Old names of `devicekit.scheduling.kv_cache.host_cache`."""

from devicekit.renamed import renamed

_NOW = "devicekit.scheduling.kv_cache.host_cache"
__getattr__ = renamed(
    __name__,
    {
        "HostTier": f"{_NOW}:HostCacheManager",
        "TierCounters": f"{_NOW}:TierCounters",
        "attach_host_tier": f"{_NOW}:attach_host_cache",
    },
)
