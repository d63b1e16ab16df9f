"""Old names of `devicekit.scheduling.kv_cache`."""
