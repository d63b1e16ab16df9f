"""Meaning: errors, memory and claims that are not what they are called."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from packaging.specifiers import SpecifierSet

from devicekit.contract import CAPABILITIES, ErrorKind
from devicekit.contract.hooks import HOOKS
from devicekit_conformance.selftest.building import Call, faulty
from devicekit_conformance.selftest.honest import Honest, machine
from devicekit_conformance.selftest.operators import Fault, operator

_CLASSIFY = HOOKS["classify_error"].doc


def _classifier(change: Callable[[BaseException, ErrorKind | None], object]) -> Callable[[], type[Honest]]:
    body = lambda call: change(call.arguments[0], call.forward())  # noqa: E731
    return partial(faulty, {"classify_error": body})


@operator("meaning")
def a_kind_is_claimed_too_widely() -> Iterator[Fault]:
    """An error is claimed to be of a kind that it is not."""
    wide: dict[str, Callable[[BaseException], bool]] = {
        "runtime_errors": lambda error: type(error) is RuntimeError,
        "every_error": lambda error: True,
        "value_errors": lambda error: isinstance(error, ValueError),
        "index_errors": lambda error: isinstance(error, (IndexError, KeyError)),
        "not_implemented": lambda error: isinstance(error, NotImplementedError),
        "the_hosts_memory": lambda error: "DefaultCPUAllocator" in repr(error),
        "memory_errors": lambda error: isinstance(error, MemoryError),
        "timeouts": lambda error: isinstance(error, (TimeoutError, ConnectionError, OSError)),
        "the_word_device": lambda error: "device" in repr(error).lower(),
        "the_word_memory": lambda error: "memory" in repr(error).lower(),
        "the_word_lost": lambda error: "lost" in repr(error).lower(),
        "the_word_invalid": lambda error: "invalid" in repr(error).lower(),
        "the_word_initialized": lambda error: "initiali" in repr(error).lower(),
        "numbers": lambda error: bool(re.search(r"\d", repr(error))),
        "interrupts": lambda error: isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)),
        "assertions": lambda error: isinstance(error, AssertionError),
    }
    for kind in ErrorKind:
        for name, claims in wide.items():
            change = partial(_widely, kind, claims)
            yield Fault("classify_error", f"{kind.value}_{name}", _CLASSIFY, _classifier(change))


def _widely(
    kind: ErrorKind, claims: Callable[[BaseException], bool], error: BaseException, honest: ErrorKind | None
) -> ErrorKind | None:
    return honest or (kind if claims(error) else None)


@operator("meaning")
def a_kind_is_not_recognised() -> Iterator[Fault]:
    """An error of a kind is not recognised, or taken for another kind."""
    for kind in ErrorKind:
        narrow = lambda error, honest, kind=kind: None if honest is kind else honest  # noqa: E731
        yield Fault("classify_error", f"{kind.value}_none", _CLASSIFY, _classifier(narrow))
        for other in ErrorKind:
            if other is not kind:
                swapped = lambda error, honest, kind=kind, other=other: other if honest is kind else honest  # noqa: E731
                yield Fault(
                    "classify_error", f"{kind.value}_as_{other.value}", _CLASSIFY, _classifier(swapped)
                )
    honest_class = Honest.classify_error

    def direct(error: BaseException) -> BaseException:
        bare = error
        bare.__cause__ = bare.__context__ = None
        return bare

    def without_cause(error: BaseException, honest: ErrorKind | None) -> object:
        return honest if error.__cause__ is None else None

    def without_context(error: BaseException, honest: ErrorKind | None) -> object:
        return honest if error.__context__ is None or error.__cause__ is not None else None

    def one_deep(error: BaseException, honest: ErrorKind | None) -> object:
        first = error.__cause__ or error.__context__
        deeper = None if first is None else first.__cause__ or first.__context__
        return honest if deeper is None else None

    def fragile(error: BaseException, honest: ErrorKind | None) -> object:
        str(error)
        return honest

    def spoiling(error: BaseException, honest: ErrorKind | None) -> object:
        direct(error)
        return honest

    def text(error: BaseException, honest: ErrorKind | None) -> object:
        return None if honest is None else honest.value

    del honest_class
    for change in (without_cause, without_context, one_deep, fragile, spoiling, text):
        yield Fault("classify_error", change.__name__, _CLASSIFY, _classifier(change))


@operator("meaning")
def pinned_memory_is_not() -> Iterator[Fault]:
    """pin_memory() returns something else than a page-locked copy."""
    told = HOOKS["pin_memory"].doc

    def same(call: Call) -> object:
        return call.arguments[0]

    def unpinned(call: Call) -> object:
        return call.arguments[0].clone()

    def always_copies(call: Call) -> object:
        return (
            call.forward().clone().pin_memory()
            if machine().pinned.is_pinned(call.arguments[0])
            else call.forward()
        )

    def flat(call: Call) -> object:
        return call.forward().reshape(-1)

    def empty(call: Call) -> object:
        return call.forward().zero_()

    def floats(call: Call) -> object:
        return call.honest(call.arguments[0].to(torch.float32))

    def on_device(call: Call) -> object:
        return call.arguments[0].to("sim")

    def consumes(call: Call) -> object:
        found = call.forward()
        if found is not call.arguments[0] and found.data_ptr() != call.arguments[0].data_ptr():
            call.arguments[0].zero_()
        return found

    def large_only(call: Call) -> object:
        return call.forward() if call.arguments[0].nbytes > 1 << 16 else call.arguments[0].clone()

    def small_only(call: Call) -> object:
        return call.forward() if call.arguments[0].nbytes < 1 << 20 else call.arguments[0].clone()

    def contiguous_only(call: Call) -> object:
        return call.forward() if call.arguments[0].is_contiguous() else call.arguments[0].clone()

    bodies = (same, unpinned, always_copies, flat, empty, floats, on_device, consumes, large_only, small_only,
              contiguous_only)  # fmt: skip
    for body in bodies:
        make = partial(faulty, {"pin_memory": body})
        yield Fault("pin_memory", body.__name__, told, make)


@operator("meaning")
def shared_memory_is_not() -> Iterator[Fault]:
    """A tensor that another process imports is not the exporter's."""

    def copied(call: Call) -> object:
        return call.forward().clone()

    def zeros(call: Call) -> object:
        return call.forward().clone().zero_()

    def flat(call: Call) -> object:
        return call.forward().reshape(-1)

    def first(call: Call) -> object:
        found = call.forward()
        return found.cpu().to("sim:0")

    def typed(call: Call) -> object:
        return call.forward().to(torch.float32)

    for body in (copied, zeros, flat, first, typed):
        make = partial(faulty, {"import_ipc": body})
        yield Fault("import_ipc", body.__name__, HOOKS["import_ipc"].doc, make)

    def exports_a_copy(call: Call) -> object:
        call.memory.setdefault("kept", []).append(copy := call.arguments[0].clone())
        return call.honest(copy)

    def moves(call: Call) -> object:
        found = call.forward()
        call.arguments[0].zero_()
        return found

    def unpicklable(call: Call) -> object:
        return _Handle(call.forward())

    def pid(call: Call) -> object:
        return (id(call.arguments[0]), tuple(call.arguments[0].shape))

    for body in (exports_a_copy, moves, unpicklable, pid):
        make = partial(faulty, {"export_ipc": body})
        yield Fault("export_ipc", body.__name__, HOOKS["export_ipc"].doc, make)


class _Handle:
    def __init__(self, inner: object) -> None:
        self.inner = inner
        self.lock = lambda: None


@operator("meaning")
def a_noop_is_claimed_falsely() -> Iterator[Fault]:
    """The manifest says that a hook does nothing, and it does."""
    told = "noop: hooks for which doing nothing is right here"
    for hook in HOOKS:
        if hook in Honest.manifest.noop:
            continue
        manifest = dataclasses.replace(Honest.manifest, noop=Honest.manifest.noop | {hook})
        yield Fault(hook, "", told, partial(faulty, {}, manifest=manifest))


@operator("meaning")
def a_noop_is_claimed_and_nothing_done() -> Iterator[Fault]:
    """The manifest says that doing nothing is right, and nothing is done, where something is to be done."""
    told = "noop: hooks for which doing nothing is right here"
    for hook, spec in HOOKS.items():
        if spec.returns != "None" or hook in Honest.manifest.noop:
            continue
        manifest = dataclasses.replace(Honest.manifest, noop=Honest.manifest.noop | {hook})
        make = partial(faulty, {hook: lambda call: None}, manifest=manifest)
        yield Fault(hook, "", told, make)


@operator("meaning")
def a_capability_is_denied() -> Iterator[Fault]:
    """A capability is there and not claimed."""
    for name in sorted(Honest.manifest.capabilities):
        manifest = dataclasses.replace(
            Honest.manifest,
            capabilities=Honest.manifest.capabilities - {name},
            contract=SpecifierSet(f">={CAPABILITIES[name].since},<2"),  # an older one would not know it
        )
        told = f"capabilities: {CAPABILITIES[name].sentence}"
        yield Fault("", name, told, partial(faulty, {}, manifest=manifest))


@operator("meaning")
def a_capability_is_claimed_in_vain() -> Iterator[Fault]:
    """A capability is claimed whose hooks answer, and that is not there."""
    all_of = Honest.manifest.capabilities

    def unified(call: Call) -> object:
        return dataclasses.replace(call.forward(), unified_memory=True)

    manifest = dataclasses.replace(Honest.manifest, capabilities=all_of | {"unified_memory"})
    make = partial(faulty, {"device_properties": unified}, manifest=manifest)
    yield Fault("device_properties", "unified_memory", CAPABILITIES["unified_memory"].sentence, make)

    def no_overlap(call: Call) -> bool:
        return False

    denied = dataclasses.replace(Honest.manifest, capabilities=all_of - {"async_copies"})
    make = partial(faulty, {"copies_overlap": no_overlap}, manifest=denied)
    yield Fault("copies_overlap", "async_copies", CAPABILITIES["async_copies"].sentence, make)

    def freed(call: Call) -> Any:
        found = call.forward()
        if found.reserved is None:
            return found
        return dataclasses.replace(found, reserved=found.active, peak_reserved=found.peak_active)

    uncached = dataclasses.replace(Honest.manifest, capabilities=all_of - {"caching_allocator"})
    make = partial(faulty, {"memory_stats": freed}, manifest=uncached)
    yield Fault("memory_stats", "caching_allocator", CAPABILITIES["caching_allocator"].sentence, make)
