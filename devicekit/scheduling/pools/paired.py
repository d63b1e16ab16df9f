"""Old names of `devicekit.scheduling.kv_cache`."""

from devicekit.renamed import renamed

__getattr__ = renamed(__name__, {"PairedKV": "devicekit.scheduling.kv_cache.window_pages:WindowPagesManager"})
