"""What it costs to give every running request the slot that its next token needs: a decode step's allocation."""

from __future__ import annotations

import numpy as np

from bench.harness import Peer, Row, Timing, measure, timed_row
from bench.scheduler import steady
from devicekit.device import Device, get_device

_PEERS = {  # by page size and requests running: the best peer, and the target
    (16, 64): (Peer("nano-vllm", 12.0), 3.0),
    (16, 256): (Peer("nano-vllm", 46.9), 6.0),
    (16, 1024): (Peer("nano-vllm", 183.0), 15.0),
    (1, 64): (Peer("SGLang", 15.9), 5.0),
    (1, 256): (Peer("SGLang", 25.9), 6.0),
    (1, 1024): (Peer("SGLang", 94.0), 12.0),
}


def run() -> list[Row]:
    """Every case, page by page size."""
    device = get_device("cpu")
    rows: list[Row] = []
    for (page_size, running), (peer, target) in _PEERS.items():
        timing = _allocation(device, running, page_size)
        case = f"decode allocation, pages of {page_size}, {running:,} running"
        curve = f"decode allocation, pages of {page_size}, by requests running"
        rows.append(timed_row(case, timing, peer=peer, target=target, curve=curve, at=running))
    return rows


def _allocation(device: Device, running: int, page_size: int) -> Timing:
    """A step without its model, less what noting the tokens and moving on by one costs."""
    batch = steady(device, running, page_size=page_size).state.running
    names = {"begin": batch.begin_step, "end": batch.end_step, "tokens": np.full(running, 7, np.int32)}
    whole = measure("begin(); end(tokens)", names)
    return whole.beyond(measure("end(tokens)", names))
