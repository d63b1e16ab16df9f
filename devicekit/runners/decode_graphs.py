"""Decoding captured in graphs: one launch for a pass, where the host would launch a thousand kernels.

A pass that only decodes is replayed from the graph of the smallest batch that holds it, and of the smallest
number of keys. Rows without a request repeat the last one's, and write what that writes. A graph is captured when
its sizes first come up, right after the pass has run as any other, and is trusted once it has given what such a
pass gives for other inputs than it was captured with. All share one pool of memory, where there are pools, since
they run one at a time.

What they take: the pool, about what one pass of the largest sizes takes bit by bit (`MOST_COPIED` bounds its keys
and values), and four bytes for each logit of the largest batch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from devicekit.contract.records import ErrorKind
from devicekit.memory.kv import KVPool
from devicekit.runners.attention import PagedAttention, attending
from devicekit.runners.decode_plan import FIELDS, DecodePlan, NotCapturable
from devicekit.runners.forward import PackedForward
from devicekit.scheduling.batch import ForwardBatch, Int32, Int64

if TYPE_CHECKING:
    from devicekit.contract.handles import DeviceGraph
    from devicekit.device import Device

MOST_ROWS = 256
"""The largest batch that is captured. The launches of a larger one are a small part of what it takes."""

LEAST_KEYS = 256
"""Keys per token of the smallest graphs; each further size has twice as many."""

MOST_COPIED = 128 << 20
"""Bytes of keys and values that a captured pass may copy in each layer; one that copies more is bound by that."""

MOST_GRAPHS = 64
"""Graphs that one model may have; what comes up after that is not captured."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GraphFigures:
    """What has been captured, and what came of it."""

    graphs: int = 0  # there are now
    replays: int = 0  # passes that were replayed
    eager: int = 0  # passes that only decoded, and were not
    refusal: str = ""  # why nothing more is captured; empty: it is, when it comes up


@dataclass(frozen=True, slots=True)
class _Size:
    rows: int
    keys: int  # per row


@dataclass(slots=True)
class _Ground:
    """What every graph reads and writes, besides weights."""

    pool: KVPool
    pages: torch.Tensor  # the request table
    inputs: torch.Tensor  # int64 [FIELDS * rows]
    logits: torch.Tensor | None = None  # float32 [rows, vocabulary], from the first pass on


@dataclass(slots=True)
class _Captured:
    graph: DeviceGraph
    logits: torch.Tensor  # where it leaves them
    trusted: bool = False


class DecodeGraphs:
    """The graphs of one model on one device, and all that they refer to besides weights, pool and request table.

    It is the only owner of them. Weights and keys may be written in place; whoever moves them calls `release`
    first. Another pool or table is noticed.
    """

    def __init__(self, device: Device, forward: PackedForward, layers: Mapping[int, int], most: int) -> None:
        """``layers``: as for `PagedAttention`; ``most``: requests that run at a time, at most."""
        self._device = device
        self._forward = forward
        self._layers = layers
        largest = min(most, MOST_ROWS)
        self._rows = [1 << power for power in range(largest.bit_length()) if 1 << power < largest] + [largest]
        self._graphs: dict[_Size, _Captured] = {}
        self._ground: _Ground | None = None
        self._shared: object | None = None  # the graphs' pool of memory
        self._replays = self._eager = 0
        self._refusal = ""
        self._released = False

    @property
    def figures(self) -> GraphFigures:
        """From any thread."""
        refusal = "their memory is released" if self._released else self._refusal
        return GraphFigures(len(self._graphs), self._replays, self._eager, refusal)

    def logits(self, batch: ForwardBatch, pool: KVPool, pages: torch.Tensor) -> torch.Tensor | None:
        """Logits of a batch's tokens, [T, vocabulary] float32, good until the next call.

        ``None``, with nothing computed: it does more than decode, or is not captured.

        Args:
            pages: the batch's request table on the device.
        """
        count = len(batch.input_ids)
        if not _only_decodes(batch):
            return None
        size, ground = self._size_for(batch, pool), self._ground
        if ground is not None and not (ground.pool is pool and ground.pages is pages):
            self._forget()
            ground = None
        captured = None if size is None else self._graphs.get(size)
        if size is None or (captured is None and not self._may_capture):
            self._eager += 1
            return None
        if ground is None:
            inputs = torch.zeros(FIELDS * self._rows[-1], dtype=torch.int64, device=pages.device)
            ground = self._ground = _Ground(pool, pages, inputs)
        _upload(batch, ground.inputs, size.rows)
        if captured is not None and captured.trusted:
            self._replays += 1
            captured.graph.replay()
            return captured.logits[:count]
        self._eager += 1
        if captured is not None:
            return self._try(captured, ground, size)[:count]
        try:
            logits = self._compute(ground, size)
        except NotCapturable as error:
            self._refuse(str(error))
            return None
        self._capture(ground, size)
        return logits[:count]

    def note_failure(self, error: Exception) -> None:
        """Tell of a pass that failed, whichever it was: one that ran out of memory gets that of the graphs."""
        if self._ground is not None and self._device.classify_error(error) is ErrorKind.OUT_OF_MEMORY:
            self._forget()
            self._refuse("a pass ran out of memory beside them")

    def release(self) -> None:
        """Drop the graphs and their memory, and capture nothing until `resume`. Their bytes are not known."""
        self._forget()
        self._released = True

    def resume(self) -> None:
        """Capture again what comes up."""
        self._released = False
        self._refusal = ""

    # -- Running ----------------------------------------------------------------------------------------------

    def _size_for(self, batch: ForwardBatch, pool: KVPool) -> _Size | None:
        """The sizes of the graph that a batch is for; ``None``: there is to be none."""
        count = len(batch.input_ids)
        if count > self._rows[-1]:
            return None
        rows = next(rows for rows in self._rows if rows >= count)
        longest = int(batch.seq_lens.max())
        most = batch.table.pages_per_row * batch.page_size
        keys = min(max(LEAST_KEYS, 1 << (longest - 1).bit_length()), most)
        copied = rows * keys * pool.layout.bytes_per_token_and_layer
        return None if copied > MOST_COPIED else _Size(rows, keys)

    def _compute(self, ground: _Ground, size: _Size) -> torch.Tensor:
        """The pass that is captured, by shapes that are those of ``size``: from the inputs to the logits."""
        inputs = ground.inputs[: FIELDS * size.rows].view(FIELDS, size.rows)
        plan = DecodePlan(inputs, ground.pages, page_size=ground.pool.page_size, keys=size.keys)
        with attending(PagedAttention(ground.pool, plan, plan.slots, self._layers, plan.positions)):
            every = torch.arange(size.rows, device=inputs.device)
            made = self._forward(plan.tokens, plan.positions, every)
        if ground.logits is None:
            ground.logits = made.new_empty(self._rows[-1], made.shape[1], dtype=torch.float32)
        logits = ground.logits[: size.rows]
        return logits.copy_(made)

    # -- Capturing --------------------------------------------------------------------------------------------

    @property
    def _may_capture(self) -> bool:
        return not (self._released or self._refusal) and len(self._graphs) < MOST_GRAPHS

    def _capture(self, ground: _Ground, size: _Size) -> None:
        """Capture the pass that has just run. Where that fails there is no graph, and the reason is kept."""
        graph: DeviceGraph | None = None
        try:
            if self._shared is None and self._device.supports("graph_pool"):
                self._shared = self._device.graph_pool()
            graph = self._device.create_graph(pool=self._shared)
            with graph.capture():
                logits = self._compute(ground, size)
        except Exception as error:
            kind = self._device.classify_error(error)
            if kind is ErrorKind.DEVICE_LOST:
                raise
            if graph is not None:
                graph.reset()
            if kind is ErrorKind.OUT_OF_MEMORY:
                self._refuse("there was no memory for another")
            else:
                self._refuse(f"the pass cannot be captured: {type(error).__name__}: {error}")
        else:
            self._graphs[size] = _Captured(graph, logits)

    def _try(self, captured: _Captured, ground: _Ground, size: _Size) -> torch.Tensor:
        """Compare a graph with the pass itself, whose logits are the answer.

        What was fixed when it was captured, and should not have been, is found here and not in somebody's text.
        """
        expected = self._compute(ground, size).clone()
        captured.graph.replay()
        scale = expected.abs().amax()
        near = (captured.logits - expected).abs().amax() <= scale * _tolerance(self._forward.dtype)
        known = torch.isfinite(scale)  # of logits that are no numbers nothing can be told
        verdict = torch.stack((known, near | ~known)).tolist()
        captured.trusted = verdict == [True, True]
        if not verdict[1]:
            self._forget()
            self._refuse("a graph gave other logits than the pass that it was captured from")
        return expected

    def _forget(self) -> None:
        """Drop every graph, and all memory that is for them."""
        graphs, self._graphs = self._graphs, {}
        if graphs:
            self._device.synchronize()  # one may still be running
        for captured in graphs.values():
            captured.graph.reset()
        self._ground = self._shared = None

    def _refuse(self, reason: str) -> None:
        self._refusal = reason
        _log.warning("decoding goes on without capturing more graphs: %s", reason)


def _only_decodes(batch: ForwardBatch) -> bool:
    """Whether each request has one token to compute, and wants the next one."""
    count = len(batch.input_ids)
    return (
        0 < count == len(batch.req_pool_indices) == len(batch.logits_indices)
        and batch.scored is None
        and bool((np.diff(batch.query_start_loc) == 1).all())
    )


def _upload(batch: ForwardBatch, inputs: torch.Tensor, rows: int) -> None:
    """Fill a graph's inputs; rows to spare repeat the batch's last one."""
    count = len(batch.input_ids)
    fields: Int64 = np.empty((FIELDS, rows), np.int64)
    told: list[Int32 | Int64] = [batch.input_ids, batch.positions, batch.slot_mapping]
    for row, values in zip(fields, [*told, batch.req_pool_indices], strict=True):
        row[:count] = values
        row[count:] = values[-1]
    # Of memory that is not page-locked it is read at once: nobody waits, and it may go.
    inputs[: fields.size].copy_(torch.from_numpy(fields.reshape(-1)), non_blocking=True)


def _tolerance(dtype: torch.dtype) -> float:
    """How far apart two runs of the same kernels may be, against the largest logit."""
    return max(8 * torch.finfo(dtype).eps, 1e-4)
