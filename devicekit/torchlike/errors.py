"""What an exception from a torch device means: by type, then by code, then by message, through its causes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from devicekit.contract import ErrorKind

# The driver codes that torch.AcceleratorError carries; CUDA's, which HIP and MUSA share.
CUDA_CODES: Mapping[int, ErrorKind] = {
    2: ErrorKind.OUT_OF_MEMORY,
    3: ErrorKind.NOT_INITIALISED,  # initialisation error: also what a forked child gets
    35: ErrorKind.NOT_INITIALISED,  # no driver, or one too old for the runtime
    100: ErrorKind.NOT_INITIALISED,  # no device
    101: ErrorKind.WRONG_DEVICE,  # invalid device ordinal
    # Sticky: every later call of the process fails with the same code.
    214: ErrorKind.DEVICE_LOST,  # uncorrectable ECC error
    700: ErrorKind.DEVICE_LOST,  # illegal memory access
    702: ErrorKind.DEVICE_LOST,  # launch timed out
    709: ErrorKind.DEVICE_LOST,  # context is destroyed
    710: ErrorKind.DEVICE_LOST,  # device-side assert
    714: ErrorKind.DEVICE_LOST,  # hardware stack error
    715: ErrorKind.DEVICE_LOST,  # illegal instruction
    716: ErrorKind.DEVICE_LOST,  # misaligned address
    717: ErrorKind.DEVICE_LOST,  # invalid address space
    718: ErrorKind.DEVICE_LOST,  # invalid program counter
    719: ErrorKind.DEVICE_LOST,  # unspecified launch failure
}

# torch's own wording, the same on every device.
_WRONG_DEVICE = re.compile(
    r"Expected all tensors to be on the same device|doesn't match the current accelerator"
    r"|Invalid device argument|invalid device ordinal|device index out of range",
    re.IGNORECASE,
)
# A message counts only in the types that carry a driver's words: a ValueError that quotes one is not a failure
# of the device. torch says "not compiled" with an AssertionError, and torch_npu's failing lazy initialisation
# ends in a NameError of its own making.
_SPEAKS_FOR_DRIVER = (RuntimeError, AssertionError, NameError)


@dataclass(frozen=True, slots=True)
class ErrorRules:
    """One vendor's types, codes and words. The words are regular expressions, searched in the message."""

    out_of_memory_types: tuple[type[BaseException], ...] = (torch.OutOfMemoryError,)
    codes: Mapping[int, ErrorKind] = field(default_factory=dict)
    device_lost: str | None = None
    out_of_memory: str | None = None
    not_initialised: str | None = None
    wrong_device: str | None = None


# What CUDA says of a context that is gone, and HIP and MUSA after it.
_STICKY = (
    "an illegal memory access was encountered|unspecified launch failure|device-side assert triggered"
    "|the launch timed out and was terminated|misaligned address|an illegal instruction was encountered"
    "|uncorrectable ECC error encountered|hardware stack error|invalid program counter|context is destroyed"
    "|operation not supported on global/shared address space"
)


def cuda_like_rules(
    label: str, *, out_of_memory: str, not_initialised: str, codes: Mapping[int, ErrorKind] = CUDA_CODES
) -> ErrorRules:
    """Rules for a runtime that says what CUDA's says under its own ``label``.

    Args:
        label: as in ``"HIP error: ..."``.
        out_of_memory: the words of the vendor's libraries, as a regular expression.
        not_initialised: the vendor's own words for a missing driver, as a regular expression.
        codes: what the error codes of the runtime mean.
    """
    # "CUDA error: ..." is torch's, "Cuda failure 2 '...'" the collective library's.
    reported = rf"(?i:\b{label} (?:driver )?error: |\b{label} failure (?:\d+ )?')"
    return ErrorRules(
        codes=codes,
        device_lost=rf"{reported}(?:{_STICKY})",
        out_of_memory=rf"\b{label} out of memory\.|{reported}out of memory|{out_of_memory}",
        not_initialised=(
            rf"Cannot re-initialize \w+ in forked subprocess|Torch not compiled with {label} enabled"
            rf"|\bNo {label} GPUs are available|{label} driver version is insufficient"
            rf"|{label} driver initialization failed|\b{label} error: initialization error|{not_initialised}"
        ),
    )


def classify(error: BaseException, rules: ErrorRules) -> ErrorKind | None:
    """What ``error`` means, or ``None``. Never raises.

    A lost device anywhere in the chain outweighs everything else, so that nobody retries on it; otherwise the
    outermost error that is recognised decides.
    """
    found: ErrorKind | None = None
    for one in _chain(error):
        kind = _judge(one, rules)
        if kind is ErrorKind.DEVICE_LOST:
            return kind
        found = found or kind
    return found


def _judge(error: BaseException, rules: ErrorRules) -> ErrorKind | None:
    if isinstance(error, rules.out_of_memory_types):
        return ErrorKind.OUT_OF_MEMORY
    code = getattr(error, "error_code", None)  # torch.AcceleratorError, since torch 2.8
    if isinstance(error, RuntimeError) and type(code) is int and code in rules.codes:
        return rules.codes[code]
    if not isinstance(error, _SPEAKS_FOR_DRIVER):
        return None
    return _judge_text(_text(error), rules)


def _judge_text(text: str, rules: ErrorRules) -> ErrorKind | None:
    for pattern, kind in (
        (rules.device_lost, ErrorKind.DEVICE_LOST),
        (rules.out_of_memory, ErrorKind.OUT_OF_MEMORY),
        (rules.not_initialised, ErrorKind.NOT_INITIALISED),
        (rules.wrong_device, ErrorKind.WRONG_DEVICE),
    ):
        if pattern is not None and re.search(pattern, text):
            return kind
    return ErrorKind.WRONG_DEVICE if _WRONG_DEVICE.search(text) else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, outermost first; a chain that bites its tail is followed once."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an exception whose __str__ raises says nothing
        return ""
