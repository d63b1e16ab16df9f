"""Errors are what they are called, and nothing else is."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch

from devicekit_conformance.effects import effect
from devicekit_conformance.printing import printed
from devicekit_conformance.trial import Trial

_LAYERS = 120  # of errors that came from each other, as retries make them


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("this exception cannot be printed")

    __repr__ = __str__


class _OfAKind(torch.OutOfMemoryError):
    """What a library derives from torch's own."""


def innocent() -> Iterator[BaseException]:
    """Errors that are none of any device's, with the words that devices use."""
    words = ("", "the device is busy", "lost", "connection to the device service lost", "invalid value for device",
             "not initialised", "the tokenizer was not initialized", "the prompt is out of memory lane",
             "memory of the conversation", "shape [2, 3] is invalid for input of size 7",
             "index 5 is out of bounds",
             "device: expected one of cpu, meta", "error 2", "code 700 was not found", "gone",
             "no such file: /dev/lost", "wrong device name in the configuration",
             "failed to initialise the logger",
             "allocation of seats failed", "timed out after 30 s")  # fmt: skip
    for kind in (
        ValueError,
        TypeError,
        KeyError,
        AssertionError,
        LookupError,
        ArithmeticError,
        AttributeError,
    ):
        for text in words:
            yield kind(text)
    yield from (
        IndexError("index 9 is out of range"),
        ZeroDivisionError("division by zero"),
        StopIteration(3),
    )
    yield from (TimeoutError("the device did not answer"), ConnectionResetError(104, "device lost"))
    yield from (
        OSError(12, "Cannot allocate memory"),
        OSError(19, "No such device"),
        BrokenPipeError(32, "lost"),
    )
    yield from (
        RuntimeError(""),
        RuntimeError("expected a tensor of shape [2], got [3]"),
        RecursionError("deep"),
    )
    yield from (RuntimeError("the size of tensor a (3) must match the size of tensor b (4)"), RuntimeError(2))
    yield from (RuntimeError("the word 'out of memory' in a prompt is no error"), RuntimeError(700, "x"))
    yield from (
        NotImplementedError("out of memory handling is not implemented"),
        NotImplementedError("device"),
    )
    yield from (
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        ImportError("no module lost"),
    )
    yield from (KeyboardInterrupt(), SystemExit(1), GeneratorExit(), Exception(), Exception(None, 1, b"\xff"))
    yield from (_Unprintable(), EOFError("device"), SyntaxError("invalid device"), Warning("device memory"))
    yield from (
        StopAsyncIteration(),
        BufferError("memory"),
        ReferenceError("device lost"),
        RuntimeError("\udcff"),
    )
    questions: tuple[Callable[[], object], ...] = (
        lambda: torch.ones(2) @ torch.ones(3),
        lambda: torch.zeros(2)[5],
        lambda: torch.empty(-1),
    )
    for question in questions:
        try:
            question()
        except Exception as error:
            yield error


def _of_the_hosts_memory() -> Iterator[BaseException]:
    """What is raised where the host has no memory left: freeing the device's would not help."""
    yield MemoryError()
    words = "DefaultCPUAllocator: not enough memory: you tried to allocate 1073741824 bytes."
    yield RuntimeError(f"[enforce fail at alloc_cpu.cpp:117] data. {words}")
    try:
        torch.empty(1 << 60, dtype=torch.uint8)
    except Exception as error:
        yield error.with_traceback(None)


@effect("classify_error")
def classify_error(trial: Trial) -> None:
    thorough = not trial.situation  # once is enough for all of them
    for number, error in enumerate(innocent()):
        if number % 25 and not thorough:
            continue
        arguments = error.args
        kind = trial.call(error) if number < 3 else _quick(trial, error)
        trial.expect(error.args == arguments, "it changed the error that it was given")
        trial.expect(kind is None, f"it takes {_told(error)} for {getattr(kind, 'value', kind)}")
        outer = RuntimeError("the step failed")
        outer.__cause__ = error
        kind = _quick(trial, outer)
        trial.expect(
            kind is None, f"it takes an error caused by {_told(error)} for {getattr(kind, 'value', kind)}"
        )
    if not (trial.ctx.manifest.host or trial.ctx.claims("unified_memory")):
        for error in _of_the_hosts_memory():
            kind = trial.call(error)
            trial.expect(
                kind is None, f"it takes {_told(error)}, of the host, for {getattr(kind, 'value', kind)}"
            )
    loop = RuntimeError("a cause that is its own")
    loop.__context__ = ValueError("inner")
    loop.__context__.__context__ = loop
    trial.expect(trial.call(loop) is None, "it finds something in errors that are each other's context")
    if thorough:
        for error in _odd():
            kind = _unwatched(trial, error)
            trial.expect(
                kind is None, f"it takes an error whose class is odd for {getattr(kind, 'value', kind)}"
            )
    provoked = list(_provoked(trial))
    _judges_itself_first(trial, provoked)
    for wanted, error in provoked:
        _recognises(trial, wanted, error, [str(other) for kind, other in provoked if kind != wanted])


def _odd() -> Iterator[BaseException]:
    """Errors whose classes raise when they are asked, or answer nonsense."""

    def fail(*_: object) -> NoReturn:
        raise OSError("it cannot be asked")

    for name in ("__cause__", "__context__", "__suppress_context__", "args", "error_code"):
        for found in (property(fail), property(lambda self: [self])):
            yield type("Odd", (RuntimeError,), {name: found})("out of luck")
    for name in ("__str__", "__repr__", "__bool__", "__len__", "__eq__", "__hash__", "__getattribute__"):
        yield type("Odd", (RuntimeError,), {name: fail})("out of luck")
    deep: BaseException = RuntimeError("the first of many")
    for number in range(3000):
        above = RuntimeError(f"layer {number}")
        above.__context__, deep = deep, above
    yield deep


def _unwatched(trial: Trial, error: BaseException) -> object:
    """Without a look at the error itself, which it may not bear."""
    try:
        return trial.ctx.raw_hook(trial.hook)(error)
    except Exception as raised:
        trial.fail(f"raised {type(raised).__name__} for an error whose class is odd")


def _quick(trial: Trial, error: BaseException) -> Any:
    """Without a look at the surroundings, of which there are enough."""
    before, kept = printed(error), sys.getrefcount(error)
    try:
        found = trial.ctx.raw_hook(trial.hook)(error)
    except BaseException as raised:
        trial.fail(f"raised {type(raised).__name__} for {_told(error)}")
    trial.expect(printed(error) == before, f"it changed {_told(error)}, which it was given")
    trial.expect(sys.getrefcount(error) <= kept, f"it keeps {_told(error)}, which it was given")
    return found


def _provoked(trial: Trial) -> Iterator[tuple[str, BaseException]]:
    """Errors of the runtime, by what they are."""
    provoke = getattr(trial.ctx.probe, "provoke", None)
    if trial.calls[0] < 100 and trial.ctx.holds_tensors:
        yield "out_of_memory", trial.ctx.probe.exhaust(trial.index)
    trial.own("empty_cache")
    if callable(provoke):
        for kind in ("device_lost", "wrong_device", "not_initialised"):
            error = provoke(kind, trial.index)
            if error is not None:
                yield kind, error


def _judges_itself_first(trial: Trial, provoked: list[tuple[str, BaseException]]) -> None:
    """What an error came from says something only where it says nothing itself."""
    for (wanted, error), (other, below) in itertools.permutations(provoked, 2):
        kept = error.__cause__, error.__context__, error.__suppress_context__
        for name in ("__cause__", "__context__"):
            setattr(error, name, below)
            value = getattr(_quick(trial, error), "value", None)
            error.__cause__, error.__context__, error.__suppress_context__ = kept
            if other == "device_lost" and value == other:
                continue  # nobody is to try again on a lost device, wherever it is said
            trial.equal(
                value, wanted, f"what {_told(error)} is taken for, which came from one of kind {other},"
            )


def _recognises(trial: Trial, wanted: str, error: BaseException, others: list[str]) -> None:
    for given in _as_caught(error):
        value = getattr(_quick(trial, given), "value", None)
        trial.equal(value, wanted, f"what {_told(error)}, just caught, is taken for")
    if wanted != "device_lost":  # which may come before all else, wherever it is
        hidden = RuntimeError("the step failed")
        hidden.__context__, hidden.__suppress_context__ = error, True
        value = getattr(_quick(trial, hidden), "value", None)
        trial.equal(
            value, None, f"what an error raised from None is taken for, whose context {_told(error)} is,"
        )
    error, arguments = error.with_traceback(None), error.args
    if type(error) is torch.OutOfMemoryError:  # by type first, whatever the words
        for words in ("lost: invalid device ordinal, the driver is not initialized", "", *others):
            for kind in (torch.OutOfMemoryError, _OfAKind):
                misleading = kind(words)
                value = getattr(_quick(trial, misleading), "value", None)
                trial.equal(value, wanted, f"what {_told(misleading)} is taken for")
    for name, given in _wrapped(error):
        kind = _quick(trial, given)
        value = getattr(kind, "value", None)
        trial.equal(value, wanted, f"what {_told(error)}{name} is taken for")
    deep = next(given for name, given in _wrapped(error) if "four" in name)
    _quick(trial, deep)
    same = deep.__cause__ is not None and error.args == arguments
    trial.expect(same, "it changed the error that it was given")


def _as_caught(error: BaseException) -> Iterator[BaseException]:
    """The error with its traceback, alone and below one that was raised from it."""
    try:
        raise error
    except BaseException as caught:
        yield caught
        try:
            raise RuntimeError("the step failed") from caught
        except RuntimeError as outer:
            yield outer


class _WithoutTruth(RuntimeError):
    """What some libraries derive: equal to all others, of no hash, empty and false."""

    __hash__ = None  # type: ignore[assignment]  # as where a class defines equality alone

    def __eq__(self, other: object) -> bool:
        return True

    def __len__(self) -> int:
        return 0


def _wrapped(error: BaseException) -> Iterator[tuple[str, BaseException]]:
    yield "", error
    caused, context = RuntimeError("the step failed"), RuntimeError("the step failed")
    caused.__cause__, context.__context__ = error, error
    yield ", as the cause of another,", caused
    yield ", as the context of another,", context
    deep: BaseException = error
    for number in range(4):
        outer = RuntimeError(f"layer {number} failed")
        if number % 2:
            outer.__context__ = deep
        else:
            outer.__cause__ = deep
        deep = outer
    last = RuntimeError("layer 4 failed")
    last.__cause__ = deep
    yield ", four layers deep,", last
    odd, above = _WithoutTruth("odd"), _WithoutTruth("odder")
    odd.__cause__, above.__context__ = error, odd
    yield ", below errors of an odd class,", above
    deeper: BaseException = error
    for number in range(_LAYERS):
        outer = RuntimeError(f"layer {number} failed")
        outer.__context__, deeper = deeper, outer
    yield f", {_LAYERS} layers deep,", deeper


def _told(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}({str(error)[:80]!r})"
    except Exception:
        return type(error).__name__
