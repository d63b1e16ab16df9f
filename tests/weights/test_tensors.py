"""The forms in which tensors are handed over: as they are, as safetensors, in a bucket, by IPC handle."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save

from devicekit.scheduling.messages import Refusal, UpdateReply
from devicekit.weights.bucket import BucketEntry, FlatBucket
from devicekit.weights.operations import UpdateWeightsFromTensor
from tests.hash_runner import make_weights, salt_of
from tests.scheduling.rig import Rig

NEW = make_weights(5)


def test_safetensors_bytes(rig: Rig) -> None:
    reply = rig.do(UpdateWeightsFromTensor("u", safetensors=save(NEW)), UpdateReply)
    assert reply.success
    assert rig.salt == salt_of(NEW)


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickled", save(NEW)[:-1]])
def test_bytes_that_are_no_safetensors_are_refused(rig: Rig, content: bytes) -> None:
    before = rig.snapshot()
    reply = rig.do(UpdateWeightsFromTensor("u", safetensors=content), UpdateReply)
    assert reply.refusal is Refusal.INVALID
    assert "not safetensors" in reply.message
    assert rig.snapshot() == before


def test_a_flat_bucket(rig: Rig) -> None:
    bucket = FlatBucket.pack(NEW.items())
    assert bucket.flat.numel() == sum(one.nbytes for one in NEW.values())
    assert rig.do(UpdateWeightsFromTensor("u", bucket=bucket), UpdateReply).success
    assert rig.salt == salt_of(NEW)


def test_a_bucket_may_be_of_any_type_and_need_not_be_aligned() -> None:
    tensors = {"byte": torch.tensor([7], dtype=torch.uint8), "wide": torch.arange(3, dtype=torch.float64)}
    packed = FlatBucket.pack(tensors.items())
    assert torch.equal(dict(packed.unpack())["wide"], tensors["wide"])
    as_floats = FlatBucket(
        torch.arange(4, dtype=torch.float32), (BucketEntry("a", torch.float32, (2, 1), 8, 16),)
    )
    assert dict(as_floats.unpack())["a"].tolist() == [[2.0], [3.0]]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (BucketEntry("a", torch.float32, (2,), 0, 4), "takes 8 bytes"),
        (BucketEntry("a", torch.float32, (2,), 12, 20), "bucket of 16"),
        (BucketEntry("a", torch.float32, (2,), -8, 0), "bucket of 16"),
        (BucketEntry("a", torch.float32, (-1, -2), 0, 8), "takes 8 bytes"),
    ],
)
def test_a_bucket_that_lies_about_its_contents_is_refused(rig: Rig, entry: BucketEntry, words: str) -> None:
    bucket = FlatBucket(torch.zeros(4), (entry,))
    reply = rig.do(UpdateWeightsFromTensor("u", bucket=bucket), UpdateReply)
    assert reply.refusal is Refusal.INVALID
    assert words in reply.message


@pytest.mark.parametrize("fields", [{}, {"tensors": NEW, "safetensors": b""}])
def test_exactly_one_form_must_be_given(rig: Rig, fields: dict[str, object]) -> None:
    reply = rig.do(UpdateWeightsFromTensor("u", **fields), UpdateReply)  # type: ignore[arg-type]
    assert reply.refusal is Refusal.INVALID
