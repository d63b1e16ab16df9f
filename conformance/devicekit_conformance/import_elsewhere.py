"""Reads a pickled handle from standard input, imports the tensor behind it, and prints the sum of its bytes."""

from __future__ import annotations

import pickle
import sys

import torch

from devicekit_conformance.context import Context
from devicekit_conformance.target import Target


def main(address: str, probe: str | None = None) -> None:
    """Run in a process of its own, with the address of the backend that exported."""
    context = Context(Target(address, probe))
    context.device_count  # noqa: B018  # opens the backend, whose classes the handle may need
    handle = pickle.load(sys.stdin.buffer)
    tensor = context.hook("import_ipc")(handle)
    if isinstance(tensor, torch.Tensor):
        print(int(tensor.cpu().to(torch.int64).sum()))


if __name__ == "__main__":
    main(*sys.argv[1:])
