"""Imports tensors from pickled handles on standard input, says what each is, and adds 1 to every number in it."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from devicekit_conformance import process_state
from devicekit_conformance.context import Context
from devicekit_conformance.target import Target
from devicekit_conformance.undisturbed import in_a_fork, undisturbed

_AT_ONCE = 8  # imports of a tensor, one after the other
_ROUNDS = 8  # so that there are more than a hundred imports in all
IMPORTS = 3 + _ROUNDS * _AT_ONCE  # of the first tensor; of others there are two


def main(address: str, probe: str | None = None) -> None:
    """Run in a process of its own, with the address of the backend that exported."""
    context = Context(Target(address, probe))
    import_ipc = undisturbed(context, "import_ipc")
    told: list[dict[str, object]] = []
    handles: list[list[bytes]] = pickle.load(sys.stdin.buffer)
    in_a_fork(context, "import_ipc", pickle.loads(handles[0].pop()))
    for first, second, *_ in handles:
        with ThreadPoolExecutor(1) as thread:  # a tensor may be exported more than once
            thread.submit(import_ipc, pickle.loads(first)).result()
        with contextlib.suppress(Exception):
            import_ipc(object())  # after which the others are to be imported all the same
        before = _counted(context)
        tensor = import_ipc(pickle.loads(second))
        changed = process_state.changes(before, _counted(context)) if len(told) > 1 else []
        if changed:
            raise SystemExit(f"import_ipc() left changes behind: {'; '.join(changed[:3])}")
        for name in ("empty_cache", "collect_ipc"):  # what is in use here is not theirs to take
            if context.has(name):
                context.hook(name)()
        if isinstance(tensor, torch.Tensor):
            place = tensor.device.index
            told.append(
                {
                    "the sum": int(tensor.cpu().to(torch.int64).sum()),
                    "what comes first": tensor.cpu().reshape(-1)[:8].to(torch.int64).tolist(),
                    "the shape": list(tensor.shape),
                    "the type": str(tensor.dtype),
                    "the device": place,
                }
            )
            tensor.add_(1)
            context.hook("synchronize")(place or 0)
    left = _left_by_imports(context, handles[0][2:])
    if left:
        raise SystemExit(f"import_ipc() of {_AT_ONCE} tensors that went at once left {left} behind")
    print(json.dumps(told))


def _left_by_imports(context: Context, handles: list[bytes]) -> str:
    """What grows with each tensor that is imported and goes; empty where nothing does."""
    growing = {"open files": 0, "mappings": 0}
    for start in range(0, _ROUNDS * _AT_ONCE, _AT_ONCE):
        before = _held()
        for handle in handles[start : start + _AT_ONCE]:
            context.hook("import_ipc")(pickle.loads(handle))
        gc.collect()
        now = _held()
        growing = {one: now[one] - before[one] for one in growing if now[one] - before[one] >= _AT_ONCE}
    return ", ".join(f"{count} {name}" for name, count in growing.items())


def _held() -> dict[str, int]:
    """What a process has only so many of."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="ascii", errors="replace").count("\n")
        return {"open files": len(os.listdir("/proc/self/fd")), "mappings": maps}
    except OSError:
        return {"open files": 0, "mappings": 0}


def _counted(context: Context) -> dict[str, object]:
    """What torch counts and an import leaves as it is, once the device is used."""
    found: dict[str, object] = {}
    own = getattr(getattr(context.probe, "runtime", None), "memory_stats", None)
    if not callable(own):
        return found
    for index in range(context.device_count):
        counted = own(index)
        found.update(
            (f"{name} of device {index}", counted.get(name)) for name in ("num_ooms", "num_alloc_retries")
        )
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
