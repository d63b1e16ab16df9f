"""Reads safetensors files into memory of this process, each tensor into its own, checking every number first.

They are not mapped, as other readers do: whoever writes to a mapped file changes the weights that are served, and
whoever cuts it short ends the process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from devicekit.documents import each_once
from devicekit.files import Stamp, SteadyFile, UnreadableFile, open_steady
from devicekit.runners.errors import InvalidModelDirectory

_LENGTH = 8  # bytes that tell how long the header is
_LONGEST_HEADER = 100_000_000  # bytes, as the format has it
_MOST_DIMENSIONS = 64  # torch's own limit

# The format's names of types. Those with less than a byte an element have no place in a model that is served here.
_DTYPES: Final = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}


Keep = Callable[[str, torch.Tensor], torch.Tensor]
"""What is wanted of a tensor; not a view of it."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a checkpoint file, known from the file's header."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it: F32, BF16, F8_E4M3…

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies in its file: bytes ``start`` to ``end - 1``."""

    name: str
    stored: StoredTensor
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One safetensors file whose header was read, and which must not change any more.

    Use `WeightFile.open`.
    """

    path: Path
    stamp: Stamp
    header: bytes
    places: tuple[_Place, ...]

    @classmethod
    def open(cls, path: Path, within: Sequence[str] = ()) -> WeightFile:
        """Read a header.

        Args:
            path: of the file, or of a link to it.
            within: directories in which the file has to lie; none: anywhere.

        Raises:
            InvalidModelDirectory: it is none, or the file cannot be read.
        """
        with _told(path), open_steady(path, within=within) as file:
            header = _header(file)
            places = _places(header, file.size - len(header))
            if file.needs_second_reading:
                file.require_same(memoryview(header), 0)
            return cls(path, file.stamp, header, places)

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor by its name."""
        return {place.name: place.stored for place in self.places}

    def read(self, keep: Keep | None = None) -> dict[str, torch.Tensor]:
        """Every tensor, in memory that nobody else has.

        Args:
            keep: what is wanted of each, by name; the rest of it is let go before the next is read.

        Raises:
            InvalidModelDirectory: the file is not what it was when it was opened, or cannot be read.
        """
        with _told(self.path), open_steady(self.path, self.stamp) as file:
            found: dict[str, torch.Tensor] = {}
            views: list[tuple[_Place, memoryview]] = []
            for place in self.places:
                tensor = torch.empty(place.stored.shape, dtype=_DTYPES[place.stored.dtype])
                view = tensor.reshape(-1).view(torch.uint8).numpy().data
                file.read_into(view, place.start)
                if keep is None or file.needs_second_reading:
                    found[place.name] = tensor
                    views.append((place, view))
                else:
                    found[place.name] = keep(place.name, tensor)
            if file.needs_second_reading:
                file.require_same(memoryview(self.header), 0)
                for place, view in views:
                    file.require_same(view, place.start)
            file.require_unchanged()
            if keep is not None and views:
                found = {name: keep(name, tensor) for name, tensor in found.items()}
            return found

    def require_unchanged(self) -> None:
        """Raise `InvalidModelDirectory` unless the file is still the one that was read."""
        with _told(self.path), open_steady(self.path, self.stamp):
            pass


def read_all(files: Sequence[WeightFile], keep: Keep | None = None) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, or what is wanted of it, all of one state of it.

    Raises:
        InvalidModelDirectory: a file changed before the last was read, or cannot be read.
    """
    found: dict[str, torch.Tensor] = {}
    for file in files:
        found |= file.read(keep)
    for file in files:  # the first may have been replaced while the last was read
        file.require_unchanged()
    return found


def _header(file: SteadyFile) -> bytes:
    """The length and the header, as they stand at the beginning of the file."""
    if file.size < _LENGTH:
        raise UnreadableFile("it is too short to have a header")
    length = int.from_bytes(file.read(_LENGTH, 0), "little")
    if length > min(_LONGEST_HEADER, file.size - _LENGTH):
        raise UnreadableFile(f"it announces a header of {length} bytes, and has {file.size}")
    return file.read(_LENGTH + length, 0)


def _places(header: bytes, size: int) -> tuple[_Place, ...]:
    """What a header says of ``size`` bytes that follow it. Tensors lie one behind the other, without holes."""
    try:
        document = json.loads(header[_LENGTH:].decode(), object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(f"its header is no JSON: {str(error)[:200]}") from error
    if not isinstance(document, dict):
        raise UnreadableFile("its header is no JSON object")
    document.pop("__metadata__", None)
    places = [_place(name, entry, len(header)) for name, entry in document.items()]
    places.sort(key=lambda place: (place.start, place.end))
    at = len(header)
    for place in places:
        if place.start != at:
            raise UnreadableFile(f"{place.name!r:.100} does not begin where the one before it ends")
        at = place.end
    if at != len(header) + size:
        raise UnreadableFile(f"its tensors have {at - len(header)} bytes, and {size} follow the header")
    return tuple(places)


def _place(name: str, entry: object, begin: int) -> _Place:
    if not isinstance(entry, dict):
        raise UnreadableFile(f"{name!r:.100} is described by no JSON object")
    dtype = entry.get("dtype")
    shape, offsets = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise UnreadableFile(f"{name!r:.100} is of the type {dtype!r:.40}, which cannot be read")
    if shape is None or offsets is None or len(offsets) != 2 or len(shape) > _MOST_DIMENSIONS:
        raise UnreadableFile(f"{name!r:.100} has no shape, or does not say where it lies")
    count = _DTYPES[dtype].itemsize
    for size in shape:
        count *= size
    start, end = offsets
    if end - start != count:
        raise UnreadableFile(f"{name!r:.100} does not have the size that its shape makes")
    return _Place(name, StoredTensor(shape, dtype), begin + start, begin + end)


def _sizes(numbers: object) -> tuple[int, ...] | None:
    if not isinstance(numbers, list) or not all(type(one) is int and 0 <= one < 1 << 62 for one in numbers):
        return None
    return tuple(numbers)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell what is wrong with a file as the model directory's own error."""
    try:
        yield
    except UnreadableFile as error:
        message = f"{path} cannot be read as safetensors: {error}"
        raise InvalidModelDirectory(message, path=str(path.parent)) from error
    except MemoryError as error:
        message = f"{path} cannot be read: there is not enough memory for its tensors"
        raise InvalidModelDirectory(message, path=str(path.parent)) from error
    except RuntimeError as error:  # torch's own: a tensor could not be had
        if "alloc" not in str(error).lower():
            raise
        message = f"{path} cannot be read: there is not enough memory for its tensors"
        raise InvalidModelDirectory(message, path=str(path.parent)) from error
