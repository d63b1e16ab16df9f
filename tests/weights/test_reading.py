"""Reading weights, their digests, and renaming their version."""

from __future__ import annotations

import pytest
import torch

from devicekit.scheduling.messages import Refusal
from devicekit.scheduling.request import FinishKind, VersionSpan
from devicekit.weights.checksum import digest_all, tensor_digest
from devicekit.weights.operations import (
    ChecksumReply,
    ChecksumWeights,
    GetWeights,
    UpdateWeightVersion,
    VersionReply,
    WeightsReply,
)
from tests.hash_runner import expected, make_weights
from tests.scheduling.rig import Rig


def test_weights_come_by_name_as_copies(rig: Rig) -> None:
    reply = rig.do(GetWeights("g", ("head.weight", "tied.weight"), max_rows=2), WeightsReply)
    assert reply.success
    head, tied = reply.weights
    assert (head.dtype, head.shape, tuple(head.values.shape)) == (torch.bfloat16, (4, 4), (2, 4))
    assert torch.equal(tied.values, rig.runner.weights["embed.weight"][:2])
    tied.values.zero_()
    assert rig.runner.weights["embed.weight"][:2].abs().sum() > 0


@pytest.mark.parametrize("operation", [GetWeights("g", ("x",)), GetWeights("g", ("head.weight",), -1)])
def test_unknown_names_and_negative_rows_are_invalid(rig: Rig, operation: GetWeights) -> None:
    assert rig.do(operation, WeightsReply).refusal is Refusal.INVALID


def test_digests_follow_values_types_shapes_and_names() -> None:
    base = torch.arange(6, dtype=torch.float32)
    digests = {
        tensor_digest(one)
        for one in (base, base.view(2, 3), base.to(torch.float64), base + 1, -torch.zeros(6), torch.zeros(6))
    }
    assert len(digests) == 6
    assert tensor_digest(base.view(2, 3).t()) == tensor_digest(base.view(2, 3).t().contiguous())
    assert digest_all([("a", base), ("b", base + 1)]) == digest_all([("b", base + 1), ("a", base)])
    assert digest_all([("a", base)])[0] != digest_all([("b", base)])[0]


def test_a_checksum_covers_every_weight_and_changes_with_one(rig: Rig) -> None:
    first = rig.do(ChecksumWeights("a"), ChecksumReply)
    assert set(first.tensors) == set(make_weights(0))
    assert first.total == digest_all(make_weights(0).items())[0]
    rig.runner.weights["head.weight"].data[0, 0] += 1
    second = rig.do(ChecksumWeights("b"), ChecksumReply)
    changed = [name for name in first.tensors if first.tensors[name] != second.tensors[name]]
    assert changed == ["head.weight"]
    assert first.total != second.total


def test_renaming_the_version_changes_labels_and_nothing_else(rig: Rig) -> None:
    request = rig.add([1, 2, 3], 8)
    rig.step(3)
    _, known = rig.progress(request)
    reply = rig.do(UpdateWeightVersion("v", "named", abort_all_requests=False), VersionReply)
    assert (reply.success, reply.changed, reply.aborted) == (True, True, 0)
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 8, rig.salt)
    assert rig.last[request].spans[0] == VersionSpan("default", 0, len(known))
    assert rig.last[request].spans[-1].version == "named"
    again = rig.add([1, 2, 3, *rig.outputs[request]], 4)
    rig.run()
    assert rig.last[again].cached_tokens > 0, "the cache is as good as it was"


def test_renaming_aborts_requests_by_default(rig: Rig) -> None:
    request = rig.add([1, 2, 3], 50)
    rig.step(2)
    assert rig.do(UpdateWeightVersion("v", "named"), VersionReply).aborted == 1
    assert rig.finishes[request].kind is FinishKind.ABORT


def test_a_version_needs_a_name(rig: Rig) -> None:
    assert rig.do(UpdateWeightVersion("v", ""), VersionReply).refusal is Refusal.INVALID


def test_renaming_to_the_same_name_joins_the_spans(rig: Rig) -> None:
    request = rig.add([1, 2, 3], 8)
    rig.step(3)
    rig.do(UpdateWeightVersion("v", "default", abort_all_requests=False), VersionReply)
    rig.run()
    assert rig.last[request].spans == (VersionSpan("default", 0, 8),)


def test_a_name_that_made_no_token_has_no_span(rig: Rig) -> None:
    request = rig.add([1, 2, 3], 8)
    rig.step(3)
    for name in ("passing", "lasting"):
        rig.post(UpdateWeightVersion(name, name, abort_all_requests=False))
    rig.run()
    assert [span.version for span in rig.last[request].spans] == ["default", "lasting"]
