"""Weight update from a stream of buckets: another process fills a shared buffer again and again.

The messages are those of checkpoint-engine, over a ZeroMQ socket that the other process binds: a handle of the
buffer, lists of what lies where in it, and nothing at the end; or what went wrong. Each is answered, with nothing
or with an error. They are pickles, and are read without running anything that is in them.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace

import torch

from devicekit.contract.text import shown
from devicekit.coordination import Coordinator, run_on_all_ranks
from devicekit.scheduling.errors import InvalidOperation
from devicekit.scheduling.messages import Operation, Refusal, Reply, UpdateOutcome, UpdateReply
from devicekit.scheduling.verbs.awaiting import awaited, polled
from devicekit.scheduling.verbs.pause import abort_requests
from devicekit.weights.bucket import BucketEntry, FlatBucket, parse_dtype
from devicekit.weights.groups import GroupFailed
from devicekit.weights.handles import handle_to_json, import_json
from devicekit.weights.operations import (
    BeginWeightUpdate,
    EndWeightUpdate,
    SessionReply,
    UpdateWeightsFromStream,
    UpdateWeightsFromTensor,
)
from devicekit.weights.pickled import SentFailure, read_message
from devicekit.weights.sockets import MessageSocket
from devicekit.weights.update import Updater, clean_up

Begin = Callable[[Operation], "Reply | Callable[[], Reply | None]"]


def stream_handler(
    updater: Updater, begin: Begin
) -> Callable[[UpdateWeightsFromStream], Callable[[], Reply | None]]:
    """The handler of `UpdateWeightsFromStream`; ``begin`` starts the operations that it is made of."""

    def handle(operation: UpdateWeightsFromStream) -> Callable[[], Reply | None]:
        if not (math.isfinite(operation.timeout) and operation.timeout > 0):
            raise InvalidOperation(f"A timeout is a positive number of seconds, not {operation.timeout}.")
        state = updater.store.state
        updater.store.require_mapped()
        updater.store.selected(operation.selector)
        device = updater.store.device
        device.require("import_ipc")
        socket = _connect(state.coordinator, lambda: MessageSocket(_own(operation, device.properties().uuid)))
        if operation.abort_all_requests:
            abort_requests(state, list(state.requests.values()), "The weights are being updated.")
        return polled(_Stream(updater, begin, operation, socket).run())

    return handle


def _connect(coordinator: Coordinator, open_socket: Callable[[], MessageSocket]) -> MessageSocket:
    """Connect on every rank, or on none."""
    opened: list[MessageSocket] = []
    try:
        run_on_all_ranks(coordinator, lambda: opened.append(open_socket()))
    except Exception:
        for one in opened:
            one.close()
        raise
    return opened[0]


def _own(operation: UpdateWeightsFromStream, uuid: str | None) -> str:
    """The address of this device's socket."""
    sockets = operation.sockets
    if uuid is not None:
        found = [address for key, address in sockets.items() if key.lower().endswith(uuid)]
    else:
        found = [*sockets.values()]
    if len(found) != 1:
        of = "this device, which knows no uuid" if uuid is None else f"a device with the uuid {uuid}"
        raise InvalidOperation(
            f"Exactly one of the sockets must be that of {of}; of {len(sockets)} sockets, {len(found)} are."
        )
    return found[0]


class _Stream:
    """One stream, and the updates that it consists of: a session with one update for each bucket."""

    def __init__(
        self, updater: Updater, begin: Begin, operation: UpdateWeightsFromStream, socket: MessageSocket
    ) -> None:
        self._updater = updater
        self._begin = begin
        self._operation = operation
        self._socket = socket
        self._coordinator = updater.store.state.coordinator
        self._device = updater.store.device
        self._buffer: torch.Tensor | None = None
        self._failure = ""
        self._buckets = 0

    def run(self) -> Generator[None, None, Reply]:
        """Take in the whole stream; yields where it has to wait."""
        operation = self._operation
        inside = self._updater.session.open
        updates: list[UpdateReply] = []
        try:
            if not inside:
                begun = yield from awaited(
                    self._begin(BeginWeightUpdate(f"{operation.id}/begin", operation.selector))
                )
                if not begun.success:
                    return replace(begun, id=operation.id)
            yield from self._take_in(updates)
        except Exception as error:  # of the stream: what was written before it is summed up below
            self._fail(str(error))
        finally:
            self._let_go()
            self._socket.close()
        self._agree()
        ended: Reply | None = None
        if not inside:
            ended = yield from awaited(self._begin(EndWeightUpdate(f"{operation.id}/end")))
        return self._sum_up(updates, ended)

    def _take_in(self, updates: list[UpdateReply]) -> Generator[None, None, None]:
        """Answer message after message of every rank until the last. After a failure nothing more is written."""
        over = everybody = False
        while not everybody:
            content = yield from self._receive(over)
            message = self._read(content) if content is not None else None
            over = message is None or isinstance(message, SentFailure)
            if isinstance(message, SentFailure):
                self._fail(f"the sender gave up: {message.message}")
            everybody = bool(self._coordinator.least(over))
            nobody = bool(self._coordinator.least(not over))
            if not (everybody or nobody):
                self._fail("the streams of the ranks end at different places")
            self._agree()
            if nobody and not self._failure:
                try:
                    yield from self._apply(message, updates)
                except Exception as error:  # the sender is told, and goes on to its end
                    self._fail(str(error))
                self._agree()
            if over:
                self._let_go()
            if content is not None:
                self._answer("" if over else self._failure)

    def _fail(self, why: str) -> None:
        self._failure = self._failure or why

    def _agree(self) -> None:
        """Treat what failed on any rank as failed on all, so that they go the same way from here."""
        self._failure = "; ".join(self._coordinator.names([self._failure] if self._failure else []))

    def _answer(self, failure: str) -> None:
        try:
            self._socket.send(pickle.dumps(RuntimeError(failure)) if failure else b"")
        except Exception as error:  # the next look at the socket comes to the same end on every rank
            self._fail(str(error))

    def _read(self, content: bytes) -> object:
        try:
            return read_message(content)
        except InvalidOperation as error:
            self._fail(str(error))
            return content

    def _receive(self, over: bool) -> Generator[None, None, bytes | None]:
        """The next message, once every rank has one; ``None``: the stream is over."""
        state, timeout = self._updater.store.state, self._operation.timeout
        deadline = state.clock.now() + timeout
        arrived: list[bytes] = []
        while True:
            failure: Exception | None = None
            try:
                arrived += self._socket.receive() if not (arrived or over) else ()
                if not (arrived or over) and state.clock.now() >= deadline:
                    raise GroupFailed(f"nothing came for {timeout:g} s")
            except Exception as error:
                failure = error
            if state.coordinator.ready(bool(arrived) or over, failure):
                return arrived[0] if arrived else None
            yield

    def _apply(self, message: object, updates: list[UpdateReply]) -> Generator[None, None, None]:
        """Open the buffer, or write the weights that are in it now."""
        coordinator, operation = self._coordinator, self._operation
        handles = coordinator.least(not isinstance(message, list))
        if handles:
            self._let_go()
            self._buffer = run_on_all_ranks(coordinator, lambda: self._open(message))
            return
        entries = run_on_all_ranks(coordinator, lambda: _entries(message))
        if self._buffer is None:
            raise InvalidOperation("Weights were announced before the buffer that they are in.")
        self._buckets += 1
        update = UpdateWeightsFromTensor(
            f"{operation.id}/{self._buckets}",
            flush_cache=False,
            empty_cache=False,
            weight_version=operation.weight_version,
            selector=operation.selector,
            bucket=FlatBucket(self._buffer, entries),
        )
        reply = yield from awaited(self._begin(update))
        self._device.synchronize()  # once this is answered, the sender fills the buffer again
        if not reply.success:
            raise InvalidOperation(reply.message)
        if isinstance(reply, UpdateReply):
            updates.append(reply)

    def _open(self, message: object) -> torch.Tensor:
        if isinstance(message, tuple) and len(message) == 2:  # as torch's own reductions tell it
            name, arguments = message
            message = {
                "device_type": self._device.torch_device.type,
                "rebuild": name,
                "arguments": handle_to_json(arguments),
            }
        buffer = import_json(self._device, message)
        if buffer.dtype != torch.uint8 or buffer.dim() != 1:
            raise InvalidOperation(f"A buffer is one row of bytes, not {buffer.dtype} {list(buffer.shape)}.")
        return buffer

    def _let_go(self) -> None:
        if self._buffer is None:
            return
        try:
            self._device.synchronize()
            self._buffer = None
            self._device.collect_ipc()
        except Exception as error:  # agreed on with whatever else went wrong
            self._buffer = None
            self._fail(str(error))

    def _sum_up(self, updates: list[UpdateReply], ended: Reply | None) -> Reply:
        operation, state = self._operation, self._updater.store.state
        failure = self._failure or ("" if updates else "it was empty")
        outcome = updates[-1].outcome if updates else UpdateOutcome.UNCHANGED
        if isinstance(ended, SessionReply):
            outcome = ended.outcome
        done = UpdateReply(
            operation.id,
            True,
            f"Weights updated to version {shown(state.weight_version)}.",
            outcome=outcome,
            tensors=sum(one.tensors for one in updates),
            bytes=sum(one.bytes for one in updates),
            weight_version=state.weight_version,
        )
        if not failure:
            return clean_up(state, operation, done)
        return replace(
            done,
            success=False,
            message=f"The stream of weights failed: {failure}. {done.tensors} weights are new.",
            refusal=Refusal.FAILED,
            outcome=UpdateOutcome.PARTIAL if updates else outcome,
        )


def _entries(message: object) -> tuple[BucketEntry, ...]:
    if not isinstance(message, list):
        raise InvalidOperation("A buffer was sent where other ranks were told of weights.")
    return tuple(map(_entry, message))


def _entry(item: object) -> BucketEntry:
    given = item if isinstance(item, dict) else {}
    name, offset, shape = given.get("name"), given.get("offset"), given.get("shape")
    sound = isinstance(name, str) and type(offset) is int and isinstance(shape, Iterable)
    sizes = tuple(shape) if sound and isinstance(shape, Iterable) else ()
    if not sound or not all(type(one) is int and 0 <= one < 2**62 for one in sizes):
        raise InvalidOperation("A bucket says of each weight its name, shape, dtype and offset.")
    dtype = parse_dtype(str(given.get("dtype")))
    start = int(str(offset))
    return BucketEntry(str(name), dtype, sizes, start, start + math.prod(sizes) * dtype.itemsize)
