"""Old names of `devicekit.scheduling.kv_cache.state_snapshots`."""

from devicekit.renamed import renamed

_NOW = "devicekit.scheduling.kv_cache.state_snapshots"
__getattr__ = renamed(__name__, {"SnapshotKV": f"{_NOW}:StateSnapshotManager"})
