"""Live memory on every device and stream, whose contents are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from devicekit_conformance.context import MIB

if TYPE_CHECKING:
    from devicekit_conformance.trial import Trial

__all__ = ["Live"]

_RELEASES = frozenset({"empty_cache", "empty_host_cache", "collect_ipc", "synchronize"})


class Live:
    """Blocks of several sizes and types in use on every device, in several streams, a pool and a graph."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self.streams: dict[int, list[object]] = {}
        self._blocks: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._private: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # in pools and graphs
        self._pools: list[object] = []
        self._graphs: list[Any] = []
        for index in range(trial.count):
            stream = trial.new_stream(index)
            self.streams[index] = [] if stream is None else [stream]
            for one in (None, *self.streams[index]):
                with trial.current(index), trial.on(one):
                    self._fill(index)
            self._fill_a_pool(index)
            self._capture(index)
        trial.finish()

    def _fill(self, index: int) -> None:
        for number, size in enumerate((4096, MIB + MIB // 4)):
            wanted = (torch.arange(size // 4, dtype=torch.int32) * (number + 3 + index)).view(torch.uint8)
            block = self._trial.tensor(size, index)
            block.copy_(wanted)
            self._blocks.append((index, block, wanted))
            floats = torch.linspace(-1.0, 1.0, size // 4 + index)
            whole = self._trial.tensor(floats.nbytes, index).view(torch.float32)
            whole.copy_(floats)
            self._blocks.append((index, whole, floats))
            self._blocks.append((index, whole[100:200], floats[100:200]))
            part = self._trial.tensor(size, index)[512:]  # of which nobody holds the whole
            part.copy_(wanted[512:])
            self._blocks.append((index, part, wanted[512:]))

    def _fill_a_pool(self, index: int) -> None:
        trial = self._trial
        if trial.hook not in _RELEASES or not (trial.ctx.claims("memory_pools") and trial.has("memory_pool")):
            return
        with trial.current(index):
            pool = trial.other("memory_pool", index)
            with pool.use():
                block = trial.filled(MIB + 4096, 40 + index, index)
        self._private.append((index, block, torch.full((MIB + 4096,), 40 + index, dtype=torch.uint8)))
        self._pools.append(pool)

    def _capture(self, index: int) -> None:
        trial = self._trial
        if trial.hook not in _RELEASES or not (trial.ctx.claims("graphs") and trial.has("create_graph")):
            return
        with trial.current(index):
            graph, source = trial.other("create_graph", index), trial.filled(4096, 50 + index, index)
            with graph.capture():
                result = source + 1
            graph.replay()
        self._private.append((index, result, torch.full((4096,), 51 + index, dtype=torch.uint8)))
        self._graphs.append(graph)

    def blocks(self) -> list[torch.Tensor]:
        """The blocks themselves, without those in pools and graphs."""
        return [block for _, block, _ in self._blocks]

    def check(self, when: str) -> None:
        """Fail the trial where a block holds anything else."""
        for index, block, wanted in (*self._blocks, *self._private):
            same = torch.equal(block.cpu(), wanted)
            self._trial.expect(
                same, f"{when}, memory in use on device {index} ({block.nbytes} bytes) holds other data"
            )

    def drop(self) -> None:
        """Let all of it go."""
        self._blocks.clear()
        self._private.clear()
        for graph in self._graphs:
            graph.reset()
        self._graphs.clear()
        for pool in self._pools:
            release = getattr(pool, "release", None)
            if callable(release):
                release()
        self._pools.clear()
        self._trial.finish()
