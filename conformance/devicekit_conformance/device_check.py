"""Says of a device that is too small that it is: the suite would fail it for what it has no room for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devicekit_conformance.context import MIB, Context
from devicekit_conformance.surroundings import runtime
from devicekit_conformance.target import Target, UsageError

if TYPE_CHECKING:
    from devicekit_conformance.judge import Nursery

SMALLEST = 256 * MIB
"""Bytes of memory that a device needs to be judged."""
_LIMIT = 10.0  # seconds


def check_device(nursery: Nursery, target: Target) -> None:
    """Ask torch's own functions in a worker process how large the devices are.

    Raises:
        UsageError: one is too small for the suite.
        RunnerError: no worker can be started.
    """
    from devicekit_conformance.judge import Worker

    worker = Worker(nursery, target)
    try:
        told = worker.hindrance("device", _LIMIT)
    finally:
        worker.kill()
    if told:
        raise UsageError(told)


def too_small(context: Context) -> str:
    """Which device has too little memory by torch's own count; empty if none has, or nobody says."""
    try:
        context.opened  # noqa: B018  # a vendor's torch module appears when its plugin is imported
        ask = getattr(runtime(context), "mem_get_info", None)
        totals = [ask(index)[1] for index in range(context.device_count)] if callable(ask) else []
    except BaseException:  # the backend's own fault, which its requirements will tell
        return ""
    for index, total in enumerate(totals):
        if type(total) is int and total < SMALLEST:
            return (
                f"The suite needs {SMALLEST // MIB} MiB of memory on each device, and by torch's own mem_get_info "
                f"device {index} of {context.target.address} has {total} bytes. Give the backend a larger device."
            )
    return ""
