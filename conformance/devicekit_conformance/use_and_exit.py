"""Uses a backend's device once and ends the way any program ends; run as a module with the address to use."""

from __future__ import annotations

import sys

from devicekit_conformance.context import MIB, Context
from devicekit_conformance.target import Target


def main(address: str, probe: str | None = None) -> None:
    """Allocate, wait, free, and return."""
    context = Context(Target(address, probe))
    context.device_count  # noqa: B018  # opens the backend, which the probe may need to have happened
    block = context.probe.tensor(MIB, 0)
    context.hook("synchronize")(0)
    del block


if __name__ == "__main__":
    main(*sys.argv[1:])
