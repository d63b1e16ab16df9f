"""Leaks: what a call, a third call or a failed call leaves behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from devicekit.contract.hooks import HOOKS
from devicekit_conformance.selftest.building import Body, Call, faulty, takes_index
from devicekit_conformance.selftest.honest import machine
from devicekit_conformance.selftest.operators import Fault, operator
from devicekit_conformance.selftest.operators.calls import NEVER_RAISE

_TOLD = "A hook keeps nothing for each call, and leaves nothing behind when it raises."
_kept: list[object] = []


def _device_block() -> None:
    if machine().initialized and not machine().in_bad_fork():
        _kept.append(torch.empty(1 << 16, dtype=torch.uint8, device=torch.device("sim", 0)))


def _idle() -> None:
    threading.Thread(target=threading.Event().wait, args=(3600,), daemon=True).start()


LEAKS: Mapping[str, Callable[[], object]] = {
    "descriptors": lambda: os.open(os.devnull, os.O_RDONLY),
    "objects": lambda: _kept.append([object()]),
    "host_memory": lambda: _kept.append(bytearray(1 << 16)),
    "device_memory": _device_block,
    "threads": _idle,
}


def _each(when: Callable[[int], bool], start: int) -> Iterator[Fault]:
    for number, (leak, run) in enumerate(LEAKS.items()):
        for hook in list(HOOKS)[(start + number) % 3 :: 3]:

            def body(call: Call, run: Callable[[], object] = run) -> object:
                if when(call.number):
                    run()
                return call.forward()

            yield Fault(hook, leak, _TOLD, partial(faulty, {hook: body}))


@operator("leak")
def each_call_leaks() -> Iterator[Fault]:
    """Each call leaves something behind."""
    return _each(lambda number: True, 0)


@operator("leak")
def each_third_call_leaks() -> Iterator[Fault]:
    """Each third call leaves something behind."""
    return _each(lambda number: number % 3 == 0, 1)


def _failing(run: Callable[[Call], object]) -> Body:
    def body(call: Call) -> object:
        try:
            return call.forward()
        except BaseException:
            run(call)
            raise

    return body


_FAILING = tuple(
    hook for hook in HOOKS if takes_index(hook) and hook not in NEVER_RAISE | {"reset_peak_memory_stats"}
)


def _run(run: Callable[[], object], call: Call) -> object:
    return run()


@operator("leak")
def each_failed_call_leaks() -> Iterator[Fault]:
    """Each call that raises leaves something behind."""
    for number, (leak, run) in enumerate(LEAKS.items()):
        for hook in _FAILING[number % 4 :: 4]:
            body = _failing(partial(_run, run))
            yield Fault(hook, leak, _TOLD, partial(faulty, {hook: body}))


@operator("leak")
def a_failed_call_moves_the_current_device() -> Iterator[Fault]:
    """A call that raises leaves another device current."""
    for hook in _FAILING[::2]:
        body = _failing(
            lambda call: machine().set_device((machine().index_of() + 1) % len(machine().devices))
        )
        yield Fault(hook, "", _TOLD, partial(faulty, {hook: body}))


@operator("leak")
def a_failed_call_moves_the_current_stream() -> Iterator[Fault]:
    """A call that raises leaves another stream current."""
    for hook in _FAILING[1::2]:
        body = _failing(lambda call: machine().set_stream(machine().create_stream(0)))
        yield Fault(hook, "", _TOLD, partial(faulty, {hook: body}))


@operator("leak")
def a_failed_call_keeps_its_lock() -> Iterator[Fault]:
    """A call that raises keeps a lock, and the next one waits for ever."""

    def locking() -> Body:
        lock = threading.RLock()

        def body(call: Call) -> object:
            if not lock.acquire(timeout=3600):
                return None
            found = call.forward()
            lock.release()
            return found

        return body

    def plain() -> Body:
        lock = threading.Lock()

        def body(call: Call) -> object:
            lock.acquire()
            found = call.forward()
            lock.release()
            return found

        return body

    for hook in _FAILING[::3]:
        yield Fault(hook, "own_thread", _TOLD, partial(faulty, {hook: plain()}))
    for hook in _FAILING[1::3]:
        yield Fault(hook, "other_threads", _TOLD, partial(faulty, {hook: locking()}))


@operator("leak")
def a_call_moves_the_current_device() -> Iterator[Fault]:
    """A call leaves the device current that it was about, or the last one."""
    told = "Unless a hook says otherwise it must not change the current device."

    def named(call: Call) -> object:
        found = call.forward()
        machine().set_device(call.arguments[0])
        return found

    def last(call: Call) -> object:
        found = call.forward()
        machine().set_device(len(machine().devices) - 1)
        return found

    for hook in HOOKS:
        if hook == "set_index":
            continue
        body = named if takes_index(hook) else last
        yield Fault(hook, "", told, partial(faulty, {hook: body}))


@operator("leak")
def a_call_moves_the_current_stream() -> Iterator[Fault]:
    """A call leaves another stream current."""

    def body(call: Call) -> Any:
        found = call.forward()
        if machine().initialized and not machine().in_bad_fork():
            machine().set_stream(machine().create_stream(0))
        return found

    for hook in HOOKS:
        if hook not in ("use_stream", "set_index"):
            yield Fault(hook, "", _TOLD, partial(faulty, {hook: body}))
