"""Which bytes of the host are page-locked, after whatever was locked and unlocked around them."""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch

from devicekit_conformance.trial import Trial

__all__ = ["lock_and_unlock"]

_PAGES = 12
# Page by page: "+" locks and "-" unlocks from one page up to another. What the books forbid is to be refused.
_STEPS = (
    ("+", 0, 1), ("+", 1, 2), ("+", 4, 8), ("+", 7, 9), ("+", 3, 5), ("+", 5, 6), ("+", 3, 9), ("+", 2, 4),
    ("-", 4, 6), ("-", 6, 8), ("-", 5, 7), ("-", 3, 5), ("-", 0, 2), ("-", 0, 1), ("-", 0, 1), ("+", 0, 2),
    ("+", 0, 1), ("-", 1, 2), ("+", 10, 11), ("-", 2, 4), ("-", 4, 8), ("-", 0, 1), ("-", 10, 11),
)  # fmt: skip
_ROUNDS = 3  # what was unlocked can be locked again, however often


class _Books:
    """What is locked where, kept beside the backend's own books."""

    def __init__(self) -> None:
        self._ranges: set[tuple[int, int]] = set()

    def allows(self, sign: str, start: int, end: int) -> bool:
        if sign == "-":
            return (start, end) in self._ranges
        return not any(low < end and start < high for low, high in self._ranges)

    def note(self, sign: str, start: int, end: int) -> None:
        (self._ranges.add if sign == "+" else self._ranges.discard)((start, end))

    def locked(self, page: int) -> bool:
        return any(low <= page < high for low, high in self._ranges)


def lock_and_unlock(trial: Trial) -> None:
    """Neighbours, overlaps, parts and odd views of one buffer, against books of our own."""
    page = mmap.PAGESIZE
    whole = torch.zeros((_PAGES + 1) * page, dtype=torch.uint8)
    buffer = whole[-whole.data_ptr() % page :][: _PAGES * page]
    for number in range(_ROUNDS):
        books = _Books()
        for sign, start, end in _STEPS:
            part = buffer[start * page : end * page]
            # The memory counts, whatever tensor names it.
            named = part if sign == "+" else part.view(torch.int32) if number % 2 else part.view(2, -1)
            _step(trial, books, sign, start, end, named)
            if number == 0:
                _compare(trial, books, buffer, page)
    _odd_bytes(trial, buffer, page)


def _step(trial: Trial, books: _Books, sign: str, start: int, end: int, tensor: torch.Tensor) -> None:
    hook = "register_host_memory" if sign == "+" else "unregister_host_memory"
    what = f"{hook}() of pages {start} to {end - 1} of a buffer"
    allowed, address, kept = books.allows(sign, start, end), tensor.data_ptr(), sys.getrefcount(tensor)
    try:
        trial.ctx.raw_hook(hook)(tensor)
    except Exception as error:
        trial.expect(not allowed, f"{what} raised {type(error).__name__}: {str(error)[:120]}")
        return
    trial.expect(
        allowed, f"{what} was accepted, and these are not all {'free' if sign == '+' else 'its own'}"
    )
    trial.expect(tensor.data_ptr() == address, f"{what} moved the tensor")
    keeps = trial.watched and sys.getrefcount(tensor) > kept  # else the trial keeps what is given
    trial.expect(not keeps, f"{what} keeps the tensor that it was given")
    books.note(sign, start, end)


def _compare(trial: Trial, books: _Books, buffer: torch.Tensor, page: int) -> None:
    """Every page, and views that begin on one page and end on another."""
    for first in range(_PAGES):
        _is(trial, books.locked(first), buffer[first * page : (first + 1) * page], f"page {first}")
        seen = trial.ctx.probe.pinned(_alone(buffer[first * page : (first + 1) * page]))
        told = f"page {first} is {'' if seen else 'not '}page-locked, by another look than the hook's"
        trial.expect(seen in (None, books.locked(first)), told)
    for first, last in ((0, 1), (1, 2), (3, 4), (4, 7), (7, 8), (8, 10), (2, 5)):
        rows = buffer[first * page : (last + 1) * page]
        ends = books.locked(first), books.locked(last)
        between = all(books.locked(one) for one in range(first, last))
        if all(ends) and not between:
            continue  # nobody need look there
        for step in (1, 2, 3):
            told = f"a view of pages {first} to {last}, each {step}. byte,"
            _is(trial, all(ends), rows[::step], told)


def _is(trial: Trial, wanted: bool, tensor: torch.Tensor, what: str) -> None:
    words = "is not page-locked, and was locked" if wanted else "is page-locked, and was not"
    if trial.has("is_pinned"):
        found = trial.ctx.raw_hook("is_pinned")(tensor)
        trial.expect(found is wanted, f"after pages of a buffer were locked and unlocked, {what} {words}")


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a storage of its own: torch itself answers for where a storage begins."""
    size = tensor.nbytes
    return torch.frombuffer((ctypes.c_ubyte * size).from_address(tensor.data_ptr()), dtype=torch.uint8)


def _odd_bytes(trial: Trial, buffer: torch.Tensor, page: int) -> None:
    """A few bytes at an odd address: they stay there, and at most their own page is locked with them."""
    few = buffer[5 * page + 7 : 5 * page + 102]
    address = few.data_ptr()
    trial.other("register_host_memory", few)
    trial.expect(
        few.data_ptr() == address, "register_host_memory() moved a tensor that begins at an odd address"
    )
    _is(trial, True, few, "a tensor of 95 bytes")
    for first in (4, 6, 8):
        _is(
            trial, False, buffer[first * page : (first + 1) * page], f"page {first}, where some of page 5 is,"
        )
    trial.other("unregister_host_memory", buffer[5 * page + 7 : 5 * page + 102])
    _is(trial, False, few, "a tensor of 95 bytes")
