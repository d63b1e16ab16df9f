"""How long requests get no token when new weights come from disk, beside what the pure copy of them takes.

One request decodes all the time. The update is a transaction that leaves it in place. What is new is read and
checked, and what is old is kept for a rollback, while the request goes on. Times are of the clock on the wall,
since that is what a user waits; a pass of the model itself is in none of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from bench.engine import write_model
from bench.harness import Row, Timing, timed_row
from devicekit.engine import Engine, EngineConfig
from devicekit.scheduling.messages import Reply, UpdateReply, UpdateWeightsFromDisk
from devicekit.scheduling.request import SamplingParams
from devicekit.scheduling.verbs.transaction import Settle, Transaction, TransactionReply

_SIZES: dict[str, dict[str, int]] = {
    "0.1 GB": {
        "vocab_size": 8_192,
        "hidden_size": 512,
        "intermediate_size": 1_408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "1.1 GB": {
        "hidden_size": 1_024,
        "intermediate_size": 2_816,
        "num_hidden_layers": 20,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
}
_UPDATES = 5
_MOST = 1.5  # of the pure copy's time that writing may take
_SAYS = (
    "a transaction with one request that keeps its place; in float32, from files that the system has in memory.\n"
    "No token for: the longest time between two steps that gave one, less the usual one; a pass that shares its "
    "processors with reading is longer than usual too.\n"
    "Written in: what the update's answer says, agreeing and taking note included.\n"
    "The copy alone: the same bytes from tensors to tensors, in turns with the updates."
)


def run() -> list[Row]:
    """Each size."""
    return [row for name, sizes in _SIZES.items() for row in _rows(name, sizes)]


def _rows(name: str, sizes: dict[str, int]) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        paths = [write_model(Path(folder) / str(seed), seed, **sizes) for seed in (1, 2)]
        engine = Engine.open(paths[0], "cpu", config=EngineConfig(max_running=1, kv_tokens=2048))
        engine.weights.store.rollback_bytes = 1 << 40  # the larger one too
        waits, writes, copies, meanwhile = [], [], [], []
        for turn in range(_UPDATES + 1):
            waited, written, tokens = _update(engine, paths[(turn + 1) % 2], f"update-{turn}")
            copied = _copy(engine)
            if turn:  # the first is for warming up
                waits.append(waited)
                writes.append(written)
                copies.append(copied)
                meanwhile.append(tokens)
    return [
        timed_row(f"update of {name}: no token for", Timing.of(median(waits) * 1e6), says=_SAYS),
        timed_row(f"update of {name}: written in", Timing.of(median(writes) * 1e6)),
        timed_row(f"update of {name}: the copy alone", Timing.of(median(copies) * 1e6)),
        Row(f"update of {name}: no token for, of the copy alone", median(waits) / median(copies), "x"),
        Row(
            f"update of {name}: written in, of the copy alone",
            median(writes) / median(copies),
            "x",
            target=_MOST,
        ),
        Row(f"update of {name}: tokens that came before it was written", median(meanwhile), ""),
    ]


def _update(engine: Engine, path: Path, name: str) -> tuple[float, float, int]:
    """Seconds without a token beyond the usual, seconds of writing, and tokens since the update was sent."""
    running = engine.submit([3, 5, 7], SamplingParams(max_new_tokens=1500, temperature=0, ignore_eos=True))
    usual = list(_gaps(engine, 12))
    engine.post(Transaction(name, Settle.IN_PLACE, UpdateWeightsFromDisk("", path=str(path)), flush=False))
    gaps: list[float] = []
    reply: Reply | None = None
    while reply is None:
        gaps += _gaps(engine, 1)
        reply = engine.take_reply(name)
    gaps += _gaps(engine, 1)
    assert isinstance(reply, TransactionReply)
    assert reply.success, reply.message
    [written] = [one.reply.write_seconds for one in reply.steps if isinstance(one.reply, UpdateReply)]
    assert written is not None
    engine.abort(running.id)
    return max(gaps) - median(usual[2:]), written, len(gaps) - 1


def _gaps(engine: Engine, tokens: int) -> Iterator[float]:
    """Seconds until each of the next tokens."""
    for _ in range(tokens):
        began = perf_counter()
        while not engine.step().ran:
            pass
        yield perf_counter() - began


def _copy(engine: Engine) -> float:
    """Seconds for the bytes of all weights."""
    weights = [tensor for _, tensor in engine.runner.named_weights()]
    others = [torch.empty_like(tensor) for tensor in weights]
    for one, other in zip(others, weights, strict=True):
        one.copy_(other)
    began = perf_counter()
    for one, other in zip(others, weights, strict=True):
        one.copy_(other)
    return perf_counter() - began
