"""Reads pickles of shared tensors, as older trainers send them, without running anything that is in them.

Such a pickle holds no weights, only where they lie in memory that two processes of one machine share. It is read
in two steps. First it becomes plain records: only the opcodes and names listed here are known, and every name
stands for a class or function of this file, never for what it names. Then the records are checked, and opened by
`devicekit.weights.shared_storage`.
"""

from __future__ import annotations

import builtins
import io
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch

from devicekit.scheduling.errors import InvalidOperation
from devicekit.weights.bucket import BucketEntry, FlatBucket, parse_dtype
from devicekit.weights.pickle_shape import require_small
from devicekit.weights.shared_storage import Opener, SharedStorage, SharedTensor

Payload = Mapping[str, torch.Tensor] | FlatBucket


def read_pickled(content: bytes) -> Payload:
    """The named tensors, or the flat bucket, that a pickle refers to. They are views of the shared memory.

    Raises:
        InvalidOperation: it holds anything else than that, or what it refers to cannot be opened.
    """
    return _payload(_parse(content), Opener())


@dataclass(frozen=True, slots=True)
class SentFailure:
    """What a process sends that gives up."""

    message: str


def read_message(content: bytes) -> object:
    """What a pickle says, in lists, tuples, dictionaries, texts, numbers, or a `SentFailure`.

    Types of tensors are their names, and so are the functions that open shared memory.

    Raises:
        InvalidOperation: it holds anything else.
    """
    return _parse(content)


class PickleRefused(InvalidOperation):
    """A pickle holds something that no tensor needs."""


# -- From bytes to records ------------------------------------------------------------------------------------

# What builds lists, tuples, dictionaries, texts, whole numbers and calls; and what remembers them.
_OPCODES = frozenset(
    {
        *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
        *("SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES"),
        *("EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("APPEND", "APPENDS", "SETITEM", "SETITEMS"),
        *("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD"),
    }
)


_LONGEST_TEXT = 2000  # characters of a sender's error


def _parse(content: bytes) -> object:
    try:
        require_small(content, _OPCODES)
        return _Reader(io.BytesIO(content)).load()
    except PickleRefused:
        raise
    except InvalidOperation as error:
        raise PickleRefused(str(error)) from error
    except Exception as error:  # whatever a broken or hostile pickle comes to
        raise PickleRefused(f"This pickle cannot be read: {type(error).__name__}: {error}.") from error


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        known = _NAMES.get((module, name))
        if known is None and module.partition(".")[0] == "sglang":  # its classes move between releases
            known = _SGLANG.get(name)
        if known is None and module == "torch" and name in _DTYPES:
            return name
        if known is None and _OPENER.fullmatch(f"{module}.{name}"):
            return f"{module}.{name}"
        if known is None and module == "builtins" and name in _ERRORS:
            return _Rebuild(lambda *arguments: SentFailure(_told(name, arguments)))
        if known is None:
            raise PickleRefused(f"This pickle is refused: it asks for {module}.{name}.")
        return known


def _told(name: str, arguments: tuple[object, ...]) -> str:
    """The sender's error, cut to a length that people read."""
    texts = [one[:_LONGEST_TEXT] if isinstance(one, str) else type(one).__name__ for one in arguments[:8]]
    return f"{name}: {', '.join(texts)}"[:_LONGEST_TEXT]


@dataclass(frozen=True, slots=True)
class _Rebuild:
    """Stands for a function that a pickle may call. Nothing that a pickle can do changes it."""

    call: Callable[..., object]

    def __call__(self, *arguments: object) -> object:
        return self.call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise PickleRefused("This pickle is refused: it changes a function.")


class _Fields:
    """Stands for a class of which a pickle may hold instances. They are their attributes, and nothing else."""

    __slots__ = ("fields",)

    def __new__(cls, *arguments: object) -> _Fields:
        if arguments:
            raise PickleRefused(f"This pickle is refused: {cls.__name__} takes no arguments.")
        made = super().__new__(cls)
        made.fields = {}
        return made

    fields: dict[str, object]

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict) or self.fields:
            raise PickleRefused(f"This pickle is refused: a {type(self).__name__} has attributes, once.")
        self.fields = dict(state)


class _Descriptor(_Fields):
    """A file descriptor that the other process hands over."""


class _Entry(_Fields):
    """Where one tensor lies in a bucket."""


class _PerRank(_Fields):
    """One pickle for each rank, of one tensor."""


def _tensor(kind: object, storage: object, metadata: object) -> SharedTensor:
    if not isinstance(storage, tuple) or not isinstance(metadata, tuple) or len(metadata) != 4:
        raise PickleRefused("This pickle is refused: a tensor in it has no storage.")
    where, dtype = storage
    offset, shape, stride, _ = metadata
    if not isinstance(where, SharedStorage):
        raise PickleRefused("This pickle is refused: a tensor in it has no storage.")
    numbers = (offset, *_whole(shape), *_whole(stride))
    if any(type(one) is not int or one < 0 for one in numbers) or len(shape) != len(stride):
        raise PickleRefused("This pickle is refused: a tensor in it has no possible shape.")
    return SharedTensor(where, parse_dtype(str(dtype)), offset, shape, stride)


def _by_descriptor(kind: object, descriptor: object, size: object) -> SharedStorage:
    sender = descriptor.fields.get("_id") if isinstance(descriptor, _Descriptor) else None
    if not isinstance(sender, tuple) or len(sender) != 2 or type(size) is not int:
        raise PickleRefused("This pickle is refused: a storage in it has no place.")
    address, key = sender
    if not isinstance(address, str) or type(key) is not int:
        raise PickleRefused("This pickle is refused: shared memory is handed over on this machine only.")
    return SharedStorage(size, sender=(address, key))


def _by_name(
    kind: object, manager: object, handle: object, size: object, dtype: object = None
) -> SharedStorage:
    if not isinstance(manager, bytes) or not isinstance(handle, bytes) or type(size) is not int or dtype:
        raise PickleRefused("This pickle is refused: a storage in it has no place.")
    return SharedStorage(size, name=(manager, handle))


def _whole(numbers: object) -> tuple[int, ...]:
    if not isinstance(numbers, tuple):
        raise PickleRefused("This pickle is refused: a shape in it is not one.")
    return numbers


_OPENER: Final = re.compile(r"(torch|torch_[a-z]+)\.multiprocessing\.reductions\.rebuild_[a-z]+_tensor")
_ERRORS: Final = frozenset(
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, Exception)
)
_SHARING: Final = "torch.multiprocessing.reductions"
_NAMES: Final[Mapping[tuple[str, str], object]] = MappingProxyType(
    {
        (_SHARING, "rebuild_tensor"): _Rebuild(_tensor),
        (_SHARING, "rebuild_typed_storage"): _Rebuild(lambda storage, dtype: (storage, dtype)),
        (_SHARING, "rebuild_storage_fd"): _Rebuild(_by_descriptor),
        (_SHARING, "rebuild_storage_filename"): _Rebuild(_by_name),
        (_SHARING, "rebuild_storage_empty"): _Rebuild(lambda kind: SharedStorage(0)),
        ("multiprocessing.resource_sharer", "DupFd"): _Descriptor,
        ("torch", "Size"): _Rebuild(_whole),
        ("torch", "Tensor"): "Tensor",
        ("torch.nn.parameter", "Parameter"): "Parameter",
        ("torch.storage", "UntypedStorage"): "UntypedStorage",
        ("torch.storage", "TypedStorage"): "TypedStorage",
    }
)
_SGLANG: Final[Mapping[str, object]] = MappingProxyType(
    {"FlattenedTensorMetadata": _Entry, "LocalSerializedTensor": _PerRank}
)
_DTYPES: Final = frozenset(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))


# -- From records to tensors ----------------------------------------------------------------------------------


def _payload(found: object, opener: Opener) -> Payload:
    if isinstance(found, dict) and found.keys() == {"flattened_tensor", "metadata"}:
        return _bucket(_open(found["flattened_tensor"], opener), found["metadata"])
    pairs = list(found.items()) if isinstance(found, dict) else found
    if not isinstance(pairs, list | tuple):
        raise PickleRefused("This pickle holds neither named tensors nor a bucket of them.")
    tensors: dict[str, torch.Tensor] = {}
    for pair in pairs:
        if (
            not isinstance(pair, tuple)
            or len(pair) != 2
            or not isinstance(pair[0], str)
            or pair[0] in tensors
        ):
            raise PickleRefused("This pickle holds something else than tensors, each by a name of its own.")
        name, value = pair
        tensors[name] = _open(_of_first_rank(value) if isinstance(value, _PerRank) else value, opener)
    return tensors


def _open(found: object, opener: Opener) -> torch.Tensor:
    if not isinstance(found, SharedTensor):
        raise PickleRefused("This pickle holds something else than a tensor where there should be one.")
    return opener.open(found)


def _of_first_rank(found: _PerRank) -> object:
    values = found.fields.get("values")
    if not isinstance(values, list) or len(values) != 1 or not isinstance(values[0], bytes):
        raise PickleRefused("This engine has one rank: a tensor of several cannot be read.")
    return _parse(values[0])


def _bucket(tensor: torch.Tensor, metadata: object) -> FlatBucket:
    if not isinstance(metadata, list | tuple) or not all(isinstance(one, _Entry) for one in metadata):
        raise PickleRefused("This pickle holds a bucket that does not say what is in it.")
    return FlatBucket(tensor, tuple(_entry(one.fields, tensor.dtype.itemsize) for one in metadata))


def _entry(fields: Mapping[str, object], unit: int) -> BucketEntry:
    name, start, end = fields.get("name"), fields.get("start_idx"), fields.get("end_idx")
    shape = _whole(fields.get("shape"))
    numbers = all(type(one) is int for one in shape)
    if not (numbers and isinstance(name, str) and isinstance(start, int) and isinstance(end, int)):
        raise PickleRefused("This pickle holds a bucket that does not say what is in it.")
    return BucketEntry(name, parse_dtype(str(fields.get("dtype"))), shape, start * unit, end * unit)
