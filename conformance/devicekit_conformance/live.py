"""Live memory on every device and stream, whose contents are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from devicekit_conformance.context import MIB

if TYPE_CHECKING:
    from devicekit_conformance.trial import Trial

__all__ = ["Live"]


class Live:
    """Blocks of several sizes and types in use on every device, made on the default stream and on another one."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self.streams: dict[int, list[object]] = {}
        self._blocks: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        for index in range(trial.count):
            stream = trial.new_stream(index)
            self.streams[index] = [] if stream is None else [stream]
            for one in (None, *self.streams[index]):
                with trial.current(index), trial.on(one):
                    self._fill(index)
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

    def blocks(self) -> list[torch.Tensor]:
        """The blocks themselves."""
        return [block for _, block, _ in self._blocks]

    def check(self, when: str) -> None:
        """Fail the trial where a block holds anything else."""
        for index, block, wanted in self._blocks:
            same = torch.equal(block.cpu(), wanted)
            self._trial.expect(
                same, f"{when}, memory in use on device {index} ({block.nbytes} bytes) holds other data"
            )

    def drop(self) -> None:
        """Let all of it go."""
        self._blocks.clear()
        self._trial.finish()
