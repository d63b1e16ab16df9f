"""``devicekit replay``: what a device's allocator makes of a recorded log of allocations."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from devicekit.contract.text import counted, human_bytes, human_seconds
from devicekit.device import get_device
from devicekit.observe.allocation_log import replay


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="devicekit replay",
        description="Allocate and free on a device as a log says. Exit status 1 if not everything fitted.",
    )
    parser.add_argument("log", type=Path, help="CSV or JSON lines that an AllocationLog wrote")
    parser.add_argument("--device", help="backend, or backend:index; default: DEVICEKIT_BACKEND, or the best")
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    options = parser.parse_args(arguments)
    device = get_device(options.device)
    report = replay(options.log, device)
    if options.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        print(
            f"{counted(report.allocations, 'allocation')} on {device.name}:{device.index}, {report.failed} failed"
        )
        print(f"  took            {human_seconds(report.seconds)}")
        print(f"  asked for       {human_bytes(report.requested_peak)} at most")
        print(f"  peak allocated  {human_bytes(report.peak_allocated)}")
        print(f"  reserved        {human_bytes(report.reserved)} more than before")
    return 1 if report.failed else 0
