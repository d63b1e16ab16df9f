"""The two forms of SGLang's own in which trainers pickle weights: one flat bucket, and a pickle for each rank."""

from __future__ import annotations

import io
import random
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler

import pytest
import torch

from devicekit.scheduling.errors import InvalidOperation
from devicekit.weights.bucket import BucketEntry, FlatBucket
from devicekit.weights.pickled import PickleRefused, read_pickled
from tests.seeds import drawn_seed

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
JUNK: tuple[object, ...] = (
    None,
    -1,
    3,
    1.5,
    "x",
    b"x",
    [],
    (),
    (1,),
    (-1,),
    ("2",),
    {},
    [None],
    10**30,
    True,
)


@dataclass
class FlattenedTensorMetadata:
    """As SGLang has it."""

    name: object
    shape: object
    dtype: object
    start_idx: object
    end_idx: object
    numel: object


@dataclass
class LocalSerializedTensor:
    """As SGLang has it."""

    values: object


@pytest.fixture(autouse=True)
def _theirs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for place, kind in (
        ("sglang.srt.weight_sync.tensor_bucket", FlattenedTensorMetadata),
        ("sglang.srt.model_executor.model_runner", LocalSerializedTensor),
    ):
        parts = place.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[:count])
            if name not in sys.modules:
                monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setattr(sys.modules[place], kind.__name__, kind, raising=False)
        monkeypatch.setattr(kind, "__module__", place)
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    yield
    torch.multiprocessing.set_sharing_strategy(before)


def _pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    ForkingPickler(buffer).dump(value)
    return buffer.getvalue()


def _tensors(rng: random.Random) -> dict[str, torch.Tensor]:
    return {
        f"weight {number}": torch.randint(0, 2, [rng.randrange(1, 4) for _ in range(rng.randrange(3))]).to(
            rng.choice(DTYPES)
        )
        for number in range(rng.randrange(1, 5))
    }


def _bucket(tensors: dict[str, torch.Tensor], unit: torch.dtype) -> dict[str, object]:
    """Places count in elements of the flat tensor."""
    entries, at, parts = [], 0, []
    for name, one in tensors.items():
        flat = one.reshape(-1).view(torch.uint8)
        padded = torch.nn.functional.pad(flat, (0, -len(flat) % unit.itemsize))
        begin = at // unit.itemsize
        entries.append(
            FlattenedTensorMetadata(
                name, one.shape, one.dtype, begin, begin + len(flat) // unit.itemsize, one.numel()
            )
        )
        parts.append(padded)
        at += len(padded)
    return {"flattened_tensor": torch.cat(parts).view(unit), "metadata": entries}


def _same(found: object, tensors: dict[str, torch.Tensor]) -> bool:
    read = dict(found.unpack()) if isinstance(found, FlatBucket) else found
    assert isinstance(read, dict)
    return read.keys() == tensors.keys() and all(
        read[name].dtype == one.dtype and torch.equal(read[name], one) for name, one in tensors.items()
    )


@pytest.mark.parametrize("unit", [torch.uint8, torch.float32])
def test_a_bucket_says_where_each_weight_lies_in_it(unit: torch.dtype) -> None:
    seed = drawn_seed("PICKLED_SEED")
    for number in range(20):
        tensors = _tensors(random.Random(f"{seed} {number}"))
        if unit.itemsize > 1:
            tensors = {name: one.to(torch.float32) for name, one in tensors.items()}
        assert _same(read_pickled(_pickled(_bucket(tensors, unit))), tensors), (seed, number)


def test_a_weight_of_one_rank_is_read_and_of_several_refused() -> None:
    seed = drawn_seed("PICKLED_SEED")
    for number in range(10):
        tensors = _tensors(random.Random(f"{seed} {number}"))
        one_rank = [(name, LocalSerializedTensor([_pickled(one)])) for name, one in tensors.items()]
        assert _same(read_pickled(_pickled(one_rank)), tensors), (seed, number)
    good = _pickled(torch.ones(2))
    for values in ([good, good], [], good, (good,), [torch.ones(2)], [None], None, ["x"]):
        with pytest.raises(PickleRefused):
            read_pickled(_pickled([("a", LocalSerializedTensor(values))]))


def test_a_bucket_that_does_not_say_what_is_in_it_is_refused() -> None:
    tensors = {"a": torch.ones(3), "b": torch.zeros(2, 2)}
    for name in ("name", "shape", "dtype", "start_idx", "end_idx"):
        for junk in JUNK:
            document = _bucket(tensors, torch.uint8)
            entries = document["metadata"]
            assert isinstance(entries, list)
            if (type(junk), junk) == (type(getattr(entries[1], name)), getattr(entries[1], name)):
                continue
            setattr(entries[1], name, junk)
            try:
                found = read_pickled(_pickled(document))
                assert isinstance(found, FlatBucket)
                dict(found.unpack())
            except (PickleRefused, InvalidOperation, ValueError):
                continue
            entry = found.entries[1]
            assert isinstance(entry, BucketEntry)
            assert name == "name", (name, junk, entry)
            assert entry.name == junk
    wrong: tuple[object, ...] = (
        None,
        3,
        "x",
        {},
        [None],
        [3],
        ["x"],
        [{"name": "a"}],
        [LocalSerializedTensor([])],
    )
    for metadata in wrong:
        with pytest.raises(PickleRefused):
            read_pickled(_pickled({"flattened_tensor": torch.ones(3), "metadata": metadata}))
