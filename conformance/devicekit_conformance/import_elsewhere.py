"""Imports tensors from pickled handles on standard input, says what each is, and adds 1 to every number in it."""

from __future__ import annotations

import contextlib
import json
import pickle
import sys

import torch

from devicekit_conformance import process_state
from devicekit_conformance.context import Context
from devicekit_conformance.target import Target


def main(address: str, probe: str | None = None) -> None:
    """Run in a process of its own, with the address of the backend that exported."""
    context = Context(Target(address, probe))
    context.device_count  # noqa: B018  # opens the backend, whose classes the handle may need
    told: list[dict[str, object]] = []
    with contextlib.suppress(Exception):
        context.raw_hook("import_ipc")(object())  # after which the others are to be imported all the same
    for handle in pickle.load(sys.stdin.buffer):
        context.hook("import_ipc")(pickle.loads(handle))  # a handle is good for more than one time
        before = _state(context)
        tensor = context.hook("import_ipc")(pickle.loads(handle))
        changed = process_state.changes(before, _state(context)) if len(told) > 1 else []
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
    print(json.dumps(told))


def _state(context: Context) -> dict[str, object]:
    """What an import leaves as it is, once the device is used."""
    found: dict[str, object] = {"the current device": context.probe.current_index()}
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
