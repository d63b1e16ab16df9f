"""Many tensors in one: a bucket is a flat tensor of bytes, and a list of what lies where in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from devicekit.contract.text import shown
from devicekit.scheduling.errors import InvalidOperation


@dataclass(frozen=True, slots=True)
class BucketEntry:
    """One tensor: bytes ``start`` to ``end - 1`` of the bucket."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FlatBucket:
    """``flat`` is a contiguous one-dimensional tensor of any type."""

    flat: torch.Tensor
    entries: tuple[BucketEntry, ...]

    @classmethod
    def pack(cls, tensors: Iterable[tuple[str, torch.Tensor]]) -> FlatBucket:
        """Copy tensors, all on one device, into a bucket."""
        parts: list[torch.Tensor] = []
        entries: list[BucketEntry] = []
        at = 0
        for name, tensor in tensors:
            part = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            entries.append(BucketEntry(name, tensor.dtype, tuple(tensor.shape), at, at + part.numel()))
            at += part.numel()
            parts.append(part)
        return cls(torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8), tuple(entries))

    def unpack(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors, as views of the bucket where alignment allows.

        Raises:
            InvalidOperation: an entry does not describe bytes of this bucket.
        """
        if self.flat.dim() != 1 or not self.flat.is_contiguous():
            raise InvalidOperation("A flat bucket is one contiguous one-dimensional tensor.")
        content = self.flat.view(torch.uint8)
        for entry in self.entries:
            count = 1
            for size in entry.shape:
                count *= size
            wanted = count * entry.dtype.itemsize
            if min(entry.shape, default=0) < 0 or entry.end - entry.start != wanted:
                raise InvalidOperation(
                    f"{entry.name} takes {wanted} bytes as {entry.dtype} {list(entry.shape)}, "
                    f"not {entry.end - entry.start}."
                )
            if not 0 <= entry.start <= entry.end <= content.numel():
                raise InvalidOperation(
                    f"{entry.name} lies at bytes {entry.start} to {entry.end} of a bucket of {content.numel()}."
                )
            part = content[entry.start : entry.end]
            if part.storage_offset() % entry.dtype.itemsize:
                part = part.clone()
            yield entry.name, part.view(entry.dtype).view(entry.shape)


def layout(
    names: Iterable[str], dtypes: Iterable[str], shapes: Iterable[tuple[int, ...]]
) -> tuple[BucketEntry, ...]:
    """Entries for tensors that lie one behind the other.

    Raises:
        InvalidOperation: the lists differ in length, or one of their items makes no sense.
    """
    columns = list(names), list(dtypes), list(shapes)
    if len({len(column) for column in columns}) != 1:
        lengths = ", ".join(str(len(column)) for column in columns)
        raise InvalidOperation(f"Names, dtypes and shapes must be of one length, not {lengths}.")
    entries: list[BucketEntry] = []
    at = 0
    for name, text, shape in zip(*columns, strict=True):
        dtype = parse_dtype(text)
        if min(shape, default=0) < 0:
            raise InvalidOperation(f"{name} cannot have the shape {list(shape)}.")
        count = dtype.itemsize
        for size in shape:
            count *= size
        entries.append(BucketEntry(name, dtype, tuple(shape), at, at + count))
        at += count
    return tuple(entries)


def parse_dtype(text: str) -> torch.dtype:
    """The torch type called ``text``, as in ``bfloat16`` or ``torch.bfloat16``.

    Raises:
        InvalidOperation: there is none.
    """
    dtype = getattr(torch, text.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise InvalidOperation(f"There is no tensor type {shown(text)}.")
    return dtype
