"""Engine parts that fail, and copies that drag, when a random run says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from devicekit.memory.copies import Copy
from devicekit.memory.host_kv import HostKVPool
from devicekit.runners.errors import InvalidModelDirectory
from devicekit.scheduling.messages import Selector
from devicekit.scheduling.state import Participant
from devicekit.weights.peer import PeerFailed
from devicekit.weights.store import StagedTensors, WeightStore
from tests.hash_runner import make_weights
from tests.scheduling.rig import LateCopier, LateEvent


class Stubborn(torch.nn.Parameter):
    """A weight whose coming copies fail as `script` says: one entry a copy, shared by all weights."""

    script: list[bool]
    watch: Callable[[], None]  # called whenever it is written

    @classmethod
    def of(cls, value: torch.Tensor, script: list[bool], watch: Callable[[], None]) -> Stubborn:
        made = torch.Tensor._make_subclass(cls, value.detach(), False)
        made.script, made.watch = script, watch
        return made

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        """As ever, or half, and then an error."""
        self.watch()
        if self.script and self.script.pop(0):
            flat = self.detach().reshape(-1)
            flat[: len(flat) // 2] = source.reshape(-1)[: len(flat) // 2].to(flat.dtype)
            raise RuntimeError("injected: half of a weight was written")
        return super().copy_(source, non_blocking)


@dataclass
class Checkpoints:
    """Loads the directories ``seed0``, ``seed1`` and so on into weights; knows no others."""

    weights: Mapping[str, torch.Tensor]
    chosen: dict[str, torch.Tensor] = field(default_factory=dict)
    bytes: int = 0
    tensors: int = 0

    def stage_from_disk(self, path: str, within: Sequence[str] = ()) -> Checkpoints:
        if not path.startswith("seed"):
            raise InvalidModelDirectory(f"no model directory at {path}", path=path)
        return Checkpoints(self.weights, make_weights(int(path.removeprefix("seed"))))

    def settle(self) -> None: ...

    def write(self) -> Checkpoints:
        with torch.no_grad():
            for name, new in self.chosen.items():
                self.weights[name].copy_(new)
        return self


@dataclass
class Region:
    """Memory that cannot always be released or resumed."""

    failing: bool = False

    def release(self) -> int | None:
        return self._act()

    def resume(self) -> int | None:
        return self._act()

    def _act(self) -> int | None:
        if self.failing:
            raise torch.OutOfMemoryError("injected: not now")
        return None


@dataclass
class Fetch:
    """A peer's weights on their way: they come, or never, when a random run says so."""

    store: WeightStore
    seed: int
    arrived: bool = False
    failed: bool = False
    cancelled: bool = False

    def take(self) -> StagedTensors | None:
        if self.failed:
            raise PeerFailed("injected: the peer ended midway")
        if not self.arrived:
            return None
        new = make_weights(self.seed)
        return self.store.stage_parts({(Selector.TARGET, name): one for name, one in new.items()})

    def cancel(self) -> None:
        self.cancelled = True


class Compilations:
    """A participant with work of its own, which looks at the engine whenever it is flushed."""

    name = "compilations"

    def __init__(self, at_flush: Callable[[], None]) -> None:
        self._at_flush = at_flush
        self.unfinished = self.finished = self.flushes = 0
        self.failing = False

    def participant(self) -> Participant:
        return Participant(self.name, self._flush, lambda: self.unfinished + self.finished, self._retire)

    def finish(self) -> None:
        """The work is done, but nobody has collected it yet."""
        self.finished, self.unfinished = self.finished + self.unfinished, 0

    def _flush(self) -> None:
        self.flushes += 1
        self._at_flush()
        if self.failing:
            raise RuntimeError("injected: this cache cannot be forgotten")

    def _retire(self) -> None:
        if self.failing:
            raise RuntimeError("injected: this work cannot be collected")
        self.finished = 0


class FaultyCopier(LateCopier):
    """Copies as late as it may. Some cannot be begun, and some are lost: whoever asks for them gets an error."""

    def __init__(self) -> None:
        super().__init__()
        self.unbegun = 0  # how many of the next ones cannot be begun
        self._events: list[_LosableEvent] = []

    def begin(self, work: Callable[[], None], *, blocks: bool) -> LateEvent:
        if self.unbegun:
            self.unbegun -= 1
            raise RuntimeError("injected: a copy could not be begun")
        return super().begin(work, blocks=blocks)

    def event(self) -> LateEvent:
        event = _LosableEvent(self)
        self._events.append(event)
        return event

    def lose(self) -> None:
        """All that is under way stops where it is, and is never done."""
        for event in self._events:
            event.lost = not event.happened
        self._events.clear()
        self._begun.clear()
        self._unreported.clear()


class _LosableEvent(LateEvent):
    lost = False

    def query(self) -> bool:
        self._look()
        return super().query()

    def synchronize(self) -> None:
        self._look()
        super().synchronize()

    def _look(self) -> None:
        if self.lost:
            raise RuntimeError("injected: a copy was lost")


@dataclass(frozen=True, slots=True)
class Reading:
    """A copy, and what it reads and writes."""

    copy: Copy
    device: frozenset[int]  # pages of the device, of a copy from there
    host: frozenset[int]


class WatchedHostKVPool(HostKVPool):
    """A host pool that remembers which pages each copy uses."""

    readings: tuple[Reading, ...] = ()

    def store(self, device_pages: bytes, host_pages: bytes, owner: str) -> Copy:
        copy = super().store(device_pages, host_pages, owner)
        return self._remember(copy, _ids(device_pages), _ids(host_pages))

    def load(self, host_pages: bytes, device_pages: bytes, owner: str) -> Copy:
        copy = super().load(host_pages, device_pages, owner)
        return self._remember(copy, frozenset(), _ids(host_pages))

    def under_way(self, copies: tuple[Copy, ...]) -> tuple[Reading, ...]:
        """Those that are in ``copies``; the others are over."""
        alive = {id(copy) for copy in copies}
        self.readings = tuple(one for one in self.readings if id(one.copy) in alive)
        return self.readings

    def _remember(self, copy: Copy, device: frozenset[int], host: frozenset[int]) -> Copy:
        self.readings = (*self.readings, Reading(copy, device, host))
        return copy


def _ids(pages: bytes) -> frozenset[int]:
    return frozenset(np.frombuffer(pages, np.int32).tolist())
