"""What an exception from a torch device means: by type, then by code, then by message, through its causes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from devicekit.contract import ErrorKind
from devicekit.contract.causes import chain
from devicekit.contract.errors import DeviceKitError

# torch's own wording, the same on every device.
_WRONG_DEVICE = re.compile(
    r"Expected all tensors to be on the same device|doesn't match the current accelerator"
    r"|Invalid device argument|invalid device ordinal|device(?: id| index)?(?: is)? out of range"
    r"|device >= 0 && device < \w+ INTERNAL ASSERT FAILED",
    re.IGNORECASE,
)
# A message counts only in the types that carry a driver's words: a ValueError that quotes one is not a failure
# of the device. torch says "not compiled" with an AssertionError, and torch_npu's failing lazy initialisation
# ends in a NameError of its own making.
_SPEAKS_FOR_DRIVER = (RuntimeError, AssertionError, NameError)
_QUOTES = (ValueError, TypeError, LookupError, ArithmeticError, DeviceKitError)
_LONGEST = 20_000  # characters of a message that are read


@dataclass(frozen=True, slots=True)
class ErrorRules:
    """One vendor's types, codes and words. The words are regular expressions, searched in the message.

    ``names`` are identifiers that only the vendor's software has: they also count in exceptions that other
    libraries define for themselves, where a sentence may be a quotation, and may name these themselves, as in
    ``pynvml.NVMLError_GpuIsLost``.
    """

    out_of_memory_types: tuple[type[BaseException], ...] = (torch.OutOfMemoryError,)
    codes: Mapping[int, ErrorKind] = field(default_factory=dict)
    device_lost: str | None = None
    out_of_memory: str | None = None
    not_initialised: str | None = None
    wrong_device: str | None = None
    names: Mapping[ErrorKind, str] = field(default_factory=dict)


def classify(error: BaseException, rules: ErrorRules) -> ErrorKind | None:
    """What ``error`` means, or ``None``. Never raises.

    A lost device anywhere in the chain outweighs everything else, so that nobody retries on it; otherwise the
    outermost error that is recognised decides.
    """
    found: ErrorKind | None = None
    for one in chain(error):
        kind = _judge(one, rules)
        if kind is ErrorKind.DEVICE_LOST:
            return kind
        found = found or kind
    return found


def _judge(error: BaseException, rules: ErrorRules) -> ErrorKind | None:
    own = type(error)  # isinstance would ask the object, which may lie about its class or fail
    if issubclass(own, rules.out_of_memory_types):
        return ErrorKind.OUT_OF_MEMORY
    code = _asked(lambda: getattr(error, "error_code", None))  # torch.AcceleratorError, since torch 2.8
    if issubclass(own, RuntimeError) and type(code) is int and code in rules.codes:
        return rules.codes[code]
    speaks = issubclass(own, _SPEAKS_FOR_DRIVER)
    if not speaks and (issubclass(own, _QUOTES) or _asked(lambda: own.__module__) == "builtins"):
        return None
    # A subclass of str may come back, with slices of its own.
    text = _asked(lambda: str.__getitem__(str(error), slice(_LONGEST)))
    said = text if isinstance(text, str) else ""
    title = "" if speaks else _asked(lambda: f"{own.__module__}.{own.__qualname__}: "[:_LONGEST])
    return _judge_text(f"{title}{said}", rules, whole=speaks)


def _asked(question: Callable[[], object]) -> object:
    """What an exception answers; one that fails when it is asked says nothing."""
    try:
        return question()
    except Exception:
        return None


def _judge_text(text: str, rules: ErrorRules, *, whole: bool) -> ErrorKind | None:
    sentences = {
        ErrorKind.DEVICE_LOST: rules.device_lost,
        ErrorKind.OUT_OF_MEMORY: rules.out_of_memory,
        ErrorKind.NOT_INITIALISED: rules.not_initialised,
        ErrorKind.WRONG_DEVICE: rules.wrong_device,
    }
    for kind, sentence in sentences.items():
        for pattern in (sentence if whole else None, rules.names.get(kind)):
            if pattern is not None and re.search(pattern, text):
                return kind
    return ErrorKind.WRONG_DEVICE if whole and _WRONG_DEVICE.search(text) else None


def __getattr__(name: str) -> object:
    if name in ("CUDA_CODES", "cuda_like_rules"):  # moved after 0.1
        import warnings

        from devicekit.torchlike import error_words

        warnings.warn(f"{name} has moved to devicekit.torchlike", DeprecationWarning, stacklevel=2)
        return getattr(error_words, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
