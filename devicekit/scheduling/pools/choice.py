"""Old names of `devicekit.scheduling.kv_cache`."""

from devicekit.renamed import renamed

__getattr__ = renamed(__name__, {"build_kv": "devicekit.scheduling.kv_cache.choice:build_kv_cache"})
