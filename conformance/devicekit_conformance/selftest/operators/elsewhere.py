"""Hooks that are right until something else goes on: work, a limit, a context, what others set, another hook."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from devicekit.contract.hooks import HOOKS
from devicekit.contract.spec import HookKind
from devicekit_conformance.selftest.building import Body, Call, faulty
from devicekit_conformance.selftest.honest import machine
from devicekit_conformance.selftest.operators import Fault, operator, sentence

_SAME = "It does the same each time, in every thread."
_LEAVES = "What another hook set or counts it leaves as well: peaks, counters, limits, settings."
_RUNNING = "It may be called from a finalizer, and so while another hook of the same thread runs."
_ENVIRONMENT = "Unless a hook says otherwise it must not read or write the environment."
# The suite has only another process to call these in.
_ABROAD = frozenset({"import_ipc", "export_event", "import_event"})
_SEEDING = frozenset({"manual_seed", "set_rng_state", "get_rng_state"})
_LIMITS = frozenset({"allocator_settings", "set_memory_fraction"})
_FACTS = (
    "is_available",
    "device_count",
    "device_properties",
    "supported_dtypes",
    "copies_overlap",
    "priority_range",
)


def _here() -> list[str]:
    return [name for name in HOOKS if name not in _ABROAD]


def _used() -> bool:
    return machine().initialized and not machine().in_bad_fork()


def _busy() -> bool:
    return any(one.tail > machine().clock.now() for one in machine().devices)


def _limited() -> bool:
    return any(one.allocator.limit < one.memory.total for one in machine().devices)


def _shared() -> bool:
    return any(holder.pid != os.getpid() for one in machine().devices for holder in one.memory.holders())


_WORLDS: Mapping[str, Callable[[], bool]] = {
    "busy": _busy,
    "limited": _limited,
    "shared": _shared,
    "of_doubles": lambda: torch.get_default_dtype() is torch.float64,
}


@operator("call")
def another_world_is_refused() -> Iterator[Fault]:
    """While something else goes on, a hook raises."""

    def body(world: Callable[[], bool], call: Call) -> object:
        if _used() and world():
            raise RuntimeError("not now")
        return call.forward()

    for name, world in _WORLDS.items():
        hooks = _FACTS if name in ("shared", "of_doubles") else _here()
        for hook in hooks:
            if name == "limited" and hook in _LIMITS:
                continue
            yield Fault(hook, name, _SAME, partial(faulty, {hook: partial(body, world)}))


def _recording() -> None:
    for one in machine().devices:
        one.allocator.record_history = False


def _random() -> None:
    for one in machine().devices:
        one.generator.manual_seed(one.generator.initial_seed())


def _counters() -> None:
    for one in machine().devices:
        one.allocator.counters.num_ooms = 0


def _pool() -> None:
    machine().device(0).use_pool(None)


_LOST: Mapping[str, tuple[Callable[[], None], frozenset[str]]] = {
    "recording": (_recording, frozenset({"record_memory_history"})),
    "random": (_random, _SEEDING),
    "counters": (_counters, frozenset()),
    "pool": (_pool, frozenset({"memory_pool", "create_graph"})),
}


@operator("release")
def what_others_set_is_lost() -> Iterator[Fault]:
    """A call of a hook undoes what another one set, or counts."""

    def body(undo: Callable[[], None], call: Call) -> object:
        found = call.forward()
        if _used():
            undo()
        return found

    for name, (undo, own) in _LOST.items():
        for hook in _here():
            spec = HOOKS[hook]
            changes = spec.since != "1.0" and spec.kind is HookKind.ORDERING and spec.returns == "None"
            if hook in own or changes:  # of these only the effect calls
                continue
            yield Fault(hook, name, _LEAVES, partial(faulty, {hook: partial(body, undo)}))


@operator("call")
def a_lock_is_shared_by_two_hooks() -> Iterator[Fault]:
    """Two hooks have one lock, which the thread that holds it cannot take again."""

    def body(lock: Any, call: Call) -> object:
        if not lock.acquire(blocking=False):
            raise RuntimeError("this would be a deadlock")
        try:
            return call.forward()
        finally:
            lock.release()

    for hook in _here():
        if hook == "memory_info" or HOOKS[hook].parameters != ("index",):
            continue
        locked: Body = partial(body, threading.Lock())
        yield Fault(hook, "memory_info", _RUNNING, partial(faulty, {hook: locked, "memory_info": locked}))


@operator("side effect")
def the_environment_is_read() -> Iterator[Fault]:
    """A hook asks the environment what to do."""

    def body(call: Call) -> object:
        os.environ.get("SIM_OPTIONS")
        return call.forward()

    for hook in _here():
        yield Fault(hook, "", f"{_ENVIRONMENT} {sentence(hook)}", partial(faulty, {hook: body}))
