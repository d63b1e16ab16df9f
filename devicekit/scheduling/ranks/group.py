"""The ranks of one engine: how they speak to each other, and how they find out that one is lost.

All of it goes over ``torch.distributed``, in host tensors, by gloo. There is one question at a time, asked by
every rank: each puts a short line of numbers on a table that all can read. Rank 0's line carries its time, which
is everybody's time until the next question. Whatever goes wrong with the table is final: the group is lost, every
later question fails at once, and nobody waits for anybody any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import cast
from zlib import crc32

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup, distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore, ProcessGroupGloo, Store

from devicekit.clock import Clock, SystemClock
from devicekit.contract.errors import ConfigurationError
from devicekit.scheduling.batch import Int32, Int64
from devicekit.scheduling.errors import InvalidOperation, RankLost, RanksFailed
from devicekit.scheduling.ranks.channel import TensorChannel, open_carrier
from devicekit.scheduling.ranks.line import Collectives, Line
from devicekit.scheduling.ranks.roll_call import RollCall
from devicekit.scheduling.ranks.table import Question, Table


class LockstepClock:
    """Rank 0's time as of the last question, the same on every rank."""

    def __init__(self, source: Clock) -> None:
        self.source = source
        self.time = source.now()

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.source.sleep(seconds)


class RankGroup:
    """The ranks that serve one model together. Every rank constructs it, at the same point of its program.

    Args:
        group: whose ranks these are; default: all of ``torch.distributed``, which must be initialised.
        timeout: seconds that one rank may be behind another, in computing, loading weights or anything else,
            before it is given up. The end of a process is noticed sooner.
        heartbeat: seconds between signs of life, and the longest that rank 0 sleeps on its inputs.
        clock: of this process; rank 0's counts.
        store: where the ranks leave signs of life; default: the one that ``torch.distributed`` was initialised
            with.
    """

    def __init__(
        self,
        group: ProcessGroup | None = None,
        *,
        timeout: float = 300.0,
        heartbeat: float = 1.0,
        clock: Clock | None = None,
        store: Store | None = None,
    ) -> None:
        if not 0 < heartbeat < timeout:
            raise ConfigurationError(
                f"Ranks need 0 < heartbeat < timeout, not {heartbeat:g} and {timeout:g} s."
            )
        self.timeout = timeout
        self.heartbeat = heartbeat
        self.clock = LockstepClock(clock or SystemClock())
        self.lost: RankLost | None = None
        self.in_step = False
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self._label, store = _fresh(store or distributed_c10d._get_default_store(), group)
        self._store = store
        # Outside of torch's list of groups: when the last reference goes, connections close, and the others notice
        # at once that this rank has left.
        gloo = ProcessGroupGloo(PrefixStore("group", store), self.rank, self.size, timedelta(seconds=timeout))
        self._line = Line(cast("Collectives", gloo), self.leave)  # torch's stubs leave them out
        self._roll_call = RollCall(PrefixStore("roll", store), self.rank, self.size, heartbeat, timeout)
        self._table = Table(self.size)
        self._channels: list[TensorChannel] = []

    # -- Questions --------------------------------------------------------------------------------------------

    def widen(self, tokens: int) -> None:
        """Make room for this many tokens on the table. Every line is as wide: no message can meet another size."""
        self._table = Table(self.size, tokens)

    def ask(self, question: Question, *values: int, digest: int = 0, tokens: Int32 | None = None) -> Int64:
        """Put numbers on the table and read everybody's.

        Args:
            values: at most three.
            digest: of something that must be the same on every rank.
            tokens: what else to say.

        Returns:
            Per rank a row of three values, and then tokens. Good until the next question.

        Raises:
            RankLost: a rank did not come, or came with another question or digest.
        """
        table = self._table
        table.write(question, values, digest=digest, tokens=tokens, time=self.clock.source.now())
        self._line.run(lambda group: group.allgather([table.outputs], [table.input]))
        astray = table.astray()
        if astray:
            raise self._diverged(astray)
        self.clock.time = table.first_time
        return table.values

    def texts(self, text: str) -> list[str]:
        """Everybody's text, by rank. Raises RankLost."""
        encoded = text.encode()
        sizes = self.ask(Question.TEXT, len(encoded))[:, 0].tolist()
        padded = torch.zeros(max(*sizes, 1), dtype=torch.uint8)
        padded[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
        received = [torch.empty_like(padded) for _ in sizes]
        self._line.run(lambda group: group.allgather([received], [padded]))
        return [
            bytes(one[:size].tolist()).decode(errors="replace")
            for one, size in zip(received, sizes, strict=True)
        ]

    def hand_out(self, content: bytes | None, size: int) -> bytes:
        """Rank 0's bytes, ``size`` of them. Raises RankLost."""
        tensor = torch.empty(size, dtype=torch.uint8)
        if content is not None:
            tensor.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self._line.run(lambda group: group.broadcast(tensor, 0))
        return tensor.numpy().tobytes()

    # -- Tensors ----------------------------------------------------------------------------------------------

    def open_channel(self, backend: str, device_type: str) -> TensorChannel:
        """Another way between these ranks, for tensors of a device. Every rank opens it at the same point.

        It is closed with the group, and whatever goes wrong with it is the end of the group.

        Args:
            backend: as torch calls the library that carries them.
            device_type: torch's, of the tensors.

        Raises:
            ConfigurationError: torch has no such library.
            RankLost: a rank did not come.
        """
        self.require_all()
        name = f"{self._label}/channel/{len(self._channels)}"
        where, timeout = PrefixStore(name, self._store), timedelta(seconds=self.timeout)
        carrier = open_carrier(backend, device_type, name, where, self.rank, self.size, timeout)
        channel = TensorChannel(carrier, self.rank, self.leave)
        self._channels.append(channel)
        return channel

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """A block in which ranks exchange tensors. One that fails there leaves the ranks: the others wait for it.

        Raises:
            RankLost: whatever was raised, on every rank.
        """
        try:
            yield
        except RankLost:
            raise
        except Exception as error:
            raise self.leave(f"{type(error).__name__}: {error}") from error

    # -- `Coordinator` ----------------------------------------------------------------------------------------

    def admit(self) -> None:
        if not self.in_step:
            raise InvalidOperation("With several ranks, operations are posted on rank 0.")

    def outcomes(self, what: str, own: int) -> list[int]:
        outcomes: list[int] = self.ask(Question.ANSWER, own, digest=crc32(what.encode()))[:, 0].tolist()
        return outcomes

    def least(self, value: int) -> int:
        try:
            return int(self.ask(Question.LEAST, value)[:, 0].min())
        except RankLost:
            return 0

    def ready(self, done: bool, error: Exception | None = None) -> bool:
        states = self.ask(Question.READY, -1 if error is not None else int(done))[:, 0]
        least = int(states.min())
        if least >= 0:
            return bool(least)
        failed = np.flatnonzero(states < 0).tolist()
        texts = self.texts("" if error is None else f"{type(error).__name__}: {error}")
        failures = {rank: texts[rank] for rank in failed}
        if error is not None and len(failures) == self.size and len(set(failures.values())) == 1:
            raise error
        raise RanksFailed(failures)

    def names(self, own: Sequence[str]) -> tuple[str, ...]:
        try:
            theirs = [text.split("\0") for text in self.texts("\0".join(own))]
        except RankLost:
            return tuple(own)
        found: dict[str, list[int]] = {}
        for rank, names in enumerate(theirs):
            for name in filter(None, names):
                found.setdefault(name, []).append(rank)
        return tuple(
            name if len(where) == self.size else f"{name} (rank {', '.join(map(str, where))})"
            for name, where in found.items()
        )

    def require_all(self) -> None:
        """Raise RankLost if a rank is lost, for those questions that answer nevertheless."""
        if self.lost is not None:
            raise RankLost(str(self.lost), self.lost.ranks)

    def first(self, value: int | None) -> int | None:
        """Rank 0's value (0 or more). Outside of a step, and when a rank is lost: one's own."""
        if not self.in_step:
            return value
        try:
            first = int(self.ask(Question.FIRST, -1 if value is None else value)[0, 0])
        except RankLost:
            return value
        return None if first < 0 else first

    def require_same(self, what: str, text: str) -> None:
        """Compare something that has to be the same everywhere.

        Raises:
            ConfigurationError: on every rank, naming those that differ from rank 0.
            RankLost: a rank did not come.
        """
        texts = self.texts(text)
        differing = {rank: theirs for rank, theirs in enumerate(texts) if theirs != texts[0]}
        if differing:
            rank, theirs = next(iter(differing.items()))
            raise ConfigurationError(
                f"Every rank needs the same {what}. Rank 0 has {texts[0]}, and rank {rank} has {theirs}."
            )

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within a step of the scheduler, which all ranks take together."""
        self.in_step = True
        try:
            yield
        finally:
            self.in_step = False

    # -- The end ----------------------------------------------------------------------------------------------

    def leave(self, reason: str, *, mine: bool = True, waited: float = 0.0) -> RankLost:
        """Leave for good, and agree with the others on which rank is lost; returns the error to raise.

        Args:
            mine: this rank failed by itself; otherwise it noticed that another one did not come.
            waited: seconds that it has waited for the others.
        """
        if self.lost is None:
            self._hang_up()
            self.lost = self._roll_call.verdict(reason, mine=mine, waited=waited)
        return RankLost(str(self.lost), self.lost.ranks)

    def close(self) -> None:
        """Leave in good order. Every rank must."""
        if self.lost is None:
            with suppress(RankLost):  # nobody hangs up before all know that it is over
                self.ask(Question.END)
            self._hang_up()
            self._roll_call.stop()
            self.lost = RankLost("The ranks were told to stop.")

    def _hang_up(self) -> None:
        """Close every connection, so that whoever waits for this rank hears of it at once."""
        self._line.cut()
        for channel in self._channels:
            channel.drop()

    def _diverged(self, astray: list[int]) -> RankLost:
        """All see the same table, so all come to the same end."""
        self._hang_up()
        self._roll_call.stop()
        message = f"Rank {', '.join(map(str, astray))} went another way than rank 0: their states differ."
        self.lost = RankLost(message, tuple(astray))
        return RankLost(str(self.lost), self.lost.ranks)


def _fresh(store: Store, group: ProcessGroup | None) -> tuple[str, Store]:
    """A name, and a part of the store, for the next group of these ranks, which all have constructed as often."""
    ranks = "-".join(map(str, dist.get_process_group_ranks(group or dist.group.WORLD)))
    mine = PrefixStore(f"devicekit-ranks/{ranks}", store)
    count = mine.add(f"count/{dist.get_rank(group)}", 1)
    return f"devicekit-ranks/{ranks}/{count}", PrefixStore(str(count), mine)
