"""What operators do: every operation there is, with every field drawn, senseless ones among them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

from devicekit.scheduling.messages import (
    Abort,
    Continue,
    Drain,
    Flush,
    Operation,
    Pause,
    PauseMode,
    Selector,
    UpdateWeights,
    UpdateWeightsFromDisk,
)
from devicekit.scheduling.verbs.transaction import Settle, Transaction
from devicekit.weights.bucket import BucketEntry, FlatBucket
from devicekit.weights.occupation import MemoryTag
from devicekit.weights.operations import (
    BeginWeightUpdate,
    ChecksumWeights,
    CommitWeights,
    DestroyUpdateGroup,
    DiscardWeights,
    EndWeightUpdate,
    GetWeights,
    InitUpdateGroup,
    PrepareWeights,
    ReleaseMemory,
    ResumeMemory,
    UpdateWeightsFromDistributed,
    UpdateWeightsFromIPC,
    UpdateWeightsFromTensor,
    UpdateWeightVersion,
)
from tests.hash_runner import make_weights
from tests.soak.drawing import Draw
from tests.soak.world import World

Verb = Callable[[World, Draw], Operation]

_WISH = (None, None, True, False)
_TAGS = [tag.value for tag in MemoryTag]
_NAMES = sorted(make_weights(0))


def identity(world: World) -> str:
    return f"op{world.operations}"


def flush(world: World, draw: Draw) -> Operation:
    return Flush(identity(world), draw.pick((None, None, 0.0, -1.0, 0.5, 3.0, 30.0)), draw.pick(_WISH))


def pause(world: World, draw: Draw) -> Operation:
    mode = draw.pick([PauseMode.ABORT, *[PauseMode.RETRACT, PauseMode.IN_PLACE] * 3])
    return Pause(identity(world), mode, draw.pick((None, None, 2.0, 0.05)))


def go_on(world: World, draw: Draw) -> Operation:
    return Continue(identity(world), draw.pick(_WISH))


def abort(world: World, draw: Draw) -> Operation:
    number = max(0, world.asked - draw.number(1, 12))
    fields: dict[str, object] = {
        "id": {"request_id": f"r{number}"},
        "prefix": {"prefix": f"r{number}"[:-1] + draw.pick(("", "0", "7"))},
        "all": {"all": True},
        "nothing": {},
    }[draw.pick(("id", "id", "id", "prefix", "all", "nothing"))]
    return Abort(identity(world), **fields)  # type: ignore[arg-type]


def drain(world: World, draw: Draw) -> Operation:
    return Drain(identity(world), draw.pick((None, 0.0, 1.0, 30.0)))


def update(world: World, draw: Draw) -> Operation:
    """From anywhere: tensors, a bucket, safetensors, a directory, another process."""
    name = identity(world)
    seed, chosen = draw.number(0, 3), [one for one in _NAMES if draw.number(0, 3)]
    fields: dict[str, object] = {
        "flush_cache": draw.number(0, 1) == 1,
        "empty_cache": draw.pick(_WISH),
        "abort_all_requests": draw.number(0, 3) == 3,
        "weight_version": draw.pick((None, None, None, "a", "b")),
        "selector": draw.pick((Selector.ALL, Selector.ALL, Selector.TARGET, Selector.DRAFT)),
    }
    made, content = _source(world, draw, name, seed, chosen, fields)
    world.content[name] = content
    return made


def _source(
    world: World, draw: Draw, name: str, seed: int, chosen: list[str], fields: dict[str, object]
) -> tuple[UpdateWeights, dict[str, int]]:
    values = _values(seed)
    given = {one: values[one] for one in chosen}
    if draw.number(0, 5) == 5 and "embed.weight" in given:
        given["tied.weight"] = given.pop("embed.weight")
    if fields["selector"] is Selector.DRAFT:
        given.pop("tied.weight", None)
    content = dict.fromkeys(given, seed)
    source = draw.pick(("tensors",) * 5 + ("bucket", "safetensors", "disk", "ipc", "group", "senseless"))
    if source == "bucket":
        return UpdateWeightsFromTensor(name, bucket=FlatBucket.pack(given.items()), **fields), content  # type: ignore[arg-type]
    if source == "safetensors":
        return UpdateWeightsFromTensor(name, safetensors=_safetensors(seed, tuple(given)), **fields), content  # type: ignore[arg-type]
    if source == "disk":
        path = f"seed{seed}" if draw.number(0, 3) else "nowhere"
        return UpdateWeightsFromDisk(name, path=path, **fields), dict.fromkeys(_NAMES, seed)  # type: ignore[arg-type]
    if source == "ipc" and world.calm and world.device.supports("export_ipc") and draw.number(0, 3) == 3:
        device = world.device.torch_device
        world.kept[name] = there = {one: value.to(device, copy=True) for one, value in given.items()}
        handles = {one: world.device.export_ipc(value) for one, value in there.items()}
        return UpdateWeightsFromIPC(name, handles=handles, **fields), content  # type: ignore[arg-type]
    if source == "group":
        table = {"names": ("head.weight",), "dtypes": ("float32",), "shapes": ((4, 4),)}
        return UpdateWeightsFromDistributed(name, **table, **fields), {}  # type: ignore[arg-type]
    if source == "senseless":
        return _senseless(draw, name, given, fields), {}
    return UpdateWeightsFromTensor(name, tensors=given, **fields), content  # type: ignore[arg-type]


def _senseless(
    draw: Draw, name: str, given: dict[str, torch.Tensor], fields: dict[str, object]
) -> UpdateWeightsFromTensor:
    """Weights that nobody has, of the wrong shape or type, or none at all."""
    head = _values(0)["head.weight"]
    wrong = draw.pick(
        (
            {"tensors": {**given, "nobody": torch.zeros(1)}},
            {"tensors": {**given, "head.weight": head[:2]}},
            {"tensors": {**given, "head.weight": torch.zeros(4, 4, dtype=torch.int32)}},
            {
                "tensors": {
                    **given,
                    "embed.weight": _values(1)["embed.weight"],
                    "tied.weight": torch.zeros(8, 4),
                }
            },
            {"safetensors": b"no such format"},
            {
                "bucket": FlatBucket(
                    torch.zeros(3), (BucketEntry("head.weight", torch.float32, (4, 4), 0, 64),)
                )
            },
            {},
        )
    )
    return UpdateWeightsFromTensor(name, **wrong, **fields)  # type: ignore[arg-type]


def prepare(world: World, draw: Draw) -> Operation:
    """From a directory or from a peer, who takes as long as it likes."""
    name, seed = identity(world), draw.number(0, 3)
    world.content[name] = dict.fromkeys(_NAMES, seed)
    origin = draw.pick(("path", "peer", "peer", "nowhere", "nothing"))
    fields = {
        "path": {"path": f"seed{seed}"},
        "peer": {"peer": f"peer{seed}"},
        "nowhere": {"path": "nowhere"},
    }
    return PrepareWeights(name, draw.pick("uuw"), selector=Selector.TARGET, **fields.get(origin, {}))  # type: ignore[arg-type]


def commit(world: World, draw: Draw) -> Operation:
    return CommitWeights(
        identity(world),
        flush_cache=draw.number(0, 1) == 1,
        weight_version=draw.pick((None, "a", "b")),
        selector=Selector.TARGET,
        update_id=draw.pick("uuw"),
    )


def discard(world: World, draw: Draw) -> Operation:
    return DiscardWeights(identity(world), draw.pick("uuw"))


def session(world: World, draw: Draw) -> Operation:
    return (BeginWeightUpdate if draw.number(0, 2) else EndWeightUpdate)(identity(world))


def end_session(world: World, draw: Draw) -> Operation:
    return EndWeightUpdate(identity(world))


def rename(world: World, draw: Draw) -> Operation:
    return UpdateWeightVersion(identity(world), draw.pick(("", "a", "b", "c")), draw.number(0, 3) == 3)


def release(world: World, draw: Draw) -> Operation:
    return ReleaseMemory(identity(world), _tags(draw), draw.number(0, 1) == 1)


def resume(world: World, draw: Draw) -> Operation:
    return ResumeMemory(identity(world), _tags(draw))


def _tags(draw: Draw) -> tuple[str, ...]:
    tags = tuple(tag for tag in _TAGS if draw.number(0, 2) == 2)
    return (*tags, "nothing") if draw.number(0, 19) == 19 else tags


def look(world: World, draw: Draw) -> Operation:
    name = identity(world)
    return draw.pick(
        (
            GetWeights(name, ("head.weight",)),
            GetWeights(name, ("nobody",)),
            GetWeights(name, ("tied.weight",), max_rows=draw.number(-1, 2)),
            ChecksumWeights(name),
            ChecksumWeights(name, Selector.DRAFT),
        )
    )


def group(world: World, draw: Draw) -> Operation:
    """Update groups that cannot be joined, or left."""
    name = identity(world)
    return draw.pick((InitUpdateGroup(name), DestroyUpdateGroup(name), Operation(name)))


def transaction(world: World, draw: Draw) -> Operation:
    name = identity(world)
    with_update = draw.number(0, 3) > 0
    made = update(world, draw) if with_update else None
    settle = draw.pick([*Settle, Settle.RETRACT, Settle.DRAIN])
    return Transaction(
        name,
        settle,
        made if isinstance(made, UpdateWeights) else None,
        draw.number(0, 3) > 0,
        draw.pick(_WISH),
        draw.number(0, 3) > 0,
        draw.pick((None, 3.0, 3.0)),
    )


VERBS: tuple[Verb, ...] = (
    *[flush] * 3,
    *[pause] * 3,
    *[go_on] * 4,
    *[abort] * 2,
    *[drain] * 2,
    *[update] * 4,
    *[prepare] * 2,
    *[commit] * 2,
    discard,
    session,
    end_session,
    rename,
    *[release] * 2,
    *[resume] * 3,
    look,
    group,
    *[transaction] * 2,
)


@lru_cache
def _values(seed: int) -> dict[str, torch.Tensor]:
    return make_weights(seed)


@lru_cache
def _safetensors(seed: int, names: tuple[str, ...]) -> bytes:
    from safetensors.torch import save

    values = {**_values(seed), "tied.weight": _values(seed)["embed.weight"]}
    return save({name: values[name] for name in names})
