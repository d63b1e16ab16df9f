"""What each rank does in a test, in a process of its own."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import cast

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore, ProcessGroupGloo, Store
from torch.distributed.rendezvous import rendezvous

from devicekit import register_backend, unregister_backend
from devicekit.contract import Manifest, hookimpl
from devicekit.engine import Engine, EngineConfig
from devicekit.runners.sharding import Exchange
from devicekit.scheduling.batch import ForwardBatch, StepOutput
from devicekit.scheduling.errors import RankLost
from devicekit.scheduling.messages import Flush, FlushReply, Reply, Selector
from devicekit.scheduling.participants import Participant
from devicekit.scheduling.ranks.group import RankGroup
from devicekit.scheduling.ranks.scheduler import LockstepScheduler
from devicekit.weights.bucket import FlatBucket
from devicekit.weights.operations import (
    ChecksumReply,
    ChecksumWeights,
    CommitWeights,
    DestroyUpdateGroup,
    GetWeights,
    GroupReply,
    InitUpdateGroup,
    PreparedReply,
    PrepareWeights,
    UpdateWeightsFromDistributed,
    UpdateWeightsFromIPC,
    UpdateWeightsFromTensor,
    WeightsReply,
)
from devicekit.weights.store import Loaded, PartlyWritten, StagedTensors
from devicekit_cpu.backend import Backend as CpuBackend

PROMPTS = [list(range(3, 30)), [7, 7, 7], list(range(60, 20, -1))]
KV_TOKENS = 512
_NONE: Mapping[str, object] = MappingProxyType({})


@dataclass
class Seen:
    """What a rank has to tell."""

    weight_bytes: int
    pool_bytes: int
    pages: int
    share: str
    said: dict[str, object] = field(default_factory=dict)  # by rank 0


def generate(engine: Engine, count: int = 12) -> list[list[int]]:
    """The same greedy tokens wherever the weights are the same."""
    return [list(one.tokens) for one in engine.generate(PROMPTS, max_new_tokens=count, temperature=0)]


def together(
    path: str,
    script: Callable[[Engine], dict[str, object]],
    config: Mapping[str, object] = _NONE,
    *,
    prepare: Callable[[Engine], None] = lambda engine: None,
    device: str = "cpu",
) -> Seen:
    """Open an engine of all ranks, prepare it on each, and have rank 0 use it."""
    ranks = RankGroup(timeout=240, heartbeat=0.1)
    chosen = EngineConfig(kv_tokens=KV_TOKENS, tensor_parallel=ranks.size, **config)  # type: ignore[arg-type]
    engine = Engine.open(path, device, ranks=ranks, config=chosen)
    engine.weights.store.stage_beside = 0  # however small the model is
    prepare(engine)
    scheduler = cast("LockstepScheduler", engine.scheduler)
    seen = Seen(engine.weight_bytes, engine.plan.pool_bytes, engine.plan.num_pages, str(engine.runner.share))
    if ranks.rank:
        scheduler.follow()
    else:
        seen.said = script(engine)
        scheduler.close()
    return seen


def tokens(path: str, config: dict[str, object]) -> Seen:
    return together(path, lambda engine: {"tokens": generate(engine)}, config)


def refused(path: str, config: dict[str, object]) -> str:
    """What every rank is told of a model that they cannot hold together."""
    try:
        together(path, lambda engine: {}, config)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


# -- Weights --------------------------------------------------------------------------------------------------


def replace(path: str, second: str) -> Seen:
    """`replacements` on all ranks."""
    return together(path, lambda engine: replacements(engine, second))


def replacements(engine: Engine, second: str) -> dict[str, object]:
    """Bring weights in every way, look at them, give their memory away; all that one can see of it."""
    seen: dict[str, object] = {}
    names = [name for _, name in engine.weights.store.tensors(Selector.TARGET)]

    def note(what: str, reply: Reply) -> None:
        fields = ("outcome", "tensors", "weight_version", "regions", "untrusted")
        seen[what] = [reply.success, *(getattr(reply, one) for one in fields[:3] if hasattr(reply, one))]
        if not reply.success:
            seen[f"{what}: why"] = reply.message
        sums = engine.perform(ChecksumWeights(f"sum {what}"), ChecksumReply)
        seen[f"{what}: sums"] = sums.total, dict(sums.tensors)
        assert set(sums.ranks) <= {sums.total}
        if not engine.weights.store.untrusted:
            seen[f"{what}: tokens"] = generate(engine)

    def wholes() -> dict[str, torch.Tensor]:
        reply = engine.perform(GetWeights("get", tuple(names)), WeightsReply)
        assert all(one.values.shape == one.shape for one in reply.weights)
        return {one.name: one.values for one in reply.weights}

    def update(what: str, **content: object) -> None:
        note(what, engine.update_weights(UpdateWeightsFromTensor(what, **content)))  # type: ignore[arg-type]

    first = wholes()
    note("disk", engine.update_weights_from_disk(second, weight_version="second"))
    other = wholes()
    seen["differ"] = sorted(name for name in names if not torch.equal(first[name], other[name]))
    some = dict(list(first.items())[::3])
    update("some", tensors=some)
    update("all", safetensors=save(first))
    update("bucket", bucket=FlatBucket.pack(list(other.items())[::2]))
    embedding = next(name for name in names if "embed" in name)
    for rows in (None, 3):
        reply = engine.perform(GetWeights("rows", (embedding, names[3]), rows), WeightsReply)
        seen[f"read {rows}"] = [(one.shape, one.values.tolist()) for one in reply.weights]
    seen["nobody"] = engine.perform(GetWeights("nobody", ("nobody",)), WeightsReply).message

    wide = next(name for name in names if "k_proj.weight" in name)
    update("misfits", tensors={wide: other[wide][:-1], "nobody": other[wide]})
    update("kind", tensors={wide: other[wide].int()})
    if aliases := engine.weights.store.models[Selector.TARGET].aliases:
        [(alias, name)] = aliases.items()
        update("one of two names", tensors={alias: first[name]})
        update("two values", tensors={alias: first[name], name: other[name]})

    note("prepare", engine.perform(PrepareWeights("p", update_id="u", path=second), PreparedReply))
    note("commit", engine.update_weights(CommitWeights("c", update_id="u")))

    note_memory = engine.release_memory("weights", backup_weights=True)
    assert note_memory.success, note_memory
    seen["released"] = engine.perform(GetWeights("gone", (names[0],)), WeightsReply).message
    note("resumed", engine.resume_memory("weights"))
    assert engine.release_memory("weights").success
    lost = engine.resume_memory("weights")
    seen["lost"] = lost.untrusted
    update("written again", tensors=first)
    seen["trusted"] = not engine.weights.store.untrusted
    return seen


def total(engine: Engine) -> str:
    """The checksum of all weights, the same on every rank."""
    sums = engine.perform(ChecksumWeights("sum"), ChecksumReply)
    assert set(sums.ranks) <= {sums.total}
    return sums.total


def stored(path: str) -> dict[str, torch.Tensor]:
    return load_file(Path(path) / "model.safetensors")


def lent(path: str, second: str) -> Seen:
    def script(engine: Engine) -> dict[str, object]:
        weights = stored(second)
        handles = {name: engine.device.export_ipc(one) for name, one in weights.items()}
        reply = engine.update_weights(UpdateWeightsFromIPC("lent", handles=handles))
        return {"lent": "" if reply.success else reply.message, "sum": total(engine)}

    return together(path, script)


def trained(path: str, second: str, port: int) -> Seen:
    """Rank 0 of the trainer's group is `train`, in another process."""
    weights = stored(second)
    told = {
        "names": tuple(weights),
        "dtypes": tuple(str(one.dtype).removeprefix("torch.") for one in weights.values()),
        "shapes": tuple(tuple(one.shape) for one in weights.values()),
    }

    def script(engine: Engine) -> dict[str, object]:
        init = InitUpdateGroup("init", "127.0.0.1", port, world_size=3, timeout=20.0)
        joined = engine.perform(init, GroupReply).message
        reply = engine.update_weights(UpdateWeightsFromDistributed("u", **told))  # type: ignore[arg-type]
        assert reply.success, reply
        said: dict[str, object] = {"joined": joined, "sum": total(engine)}
        assert engine.perform(DestroyUpdateGroup("bye"), GroupReply).success
        return said

    return together(path, script)


def train(path: str, port: int) -> None:
    """As trainers do: join as rank 0 of a group of its own name, then broadcast every weight, whole."""
    timeout, name = timedelta(seconds=20), "weight_update_group"
    store, _, _ = next(rendezvous(f"tcp://127.0.0.1:{port}", 0, 3, timeout=timeout))
    group, _ = distributed_c10d._new_process_group_helper(
        3,
        0,
        [],
        dist.Backend("gloo"),
        PrefixStore(name, store),
        name,  # type: ignore[arg-type]
        timeout=timeout,
    )
    distributed_c10d._world.pg_group_ranks[group] = {one: one for one in range(3)}
    for tensor in stored(path).values():
        group.broadcast(tensor, 0).wait()
    dist.destroy_process_group(group)


def from_peer(path: str, peer: str, checksum: str) -> Seen:
    def script(engine: Engine) -> dict[str, object]:
        def prepare(wanted: str) -> PreparedReply:
            operation = PrepareWeights(
                f"p {wanted}", update_id="u", peer=peer, weight_version="second", checksum=wanted
            )
            return engine.perform(operation, PreparedReply)

        before, why = total(engine), prepare("0").message
        assert prepare(checksum).success
        assert total(engine) == before
        assert engine.update_weights(CommitWeights("c", update_id="u")).success
        return {"why": why, "sum": total(engine)}

    return together(path, script)


def half_written(path: str, second: str) -> Seen:
    """Rank 1 fails after half of its weights, first with what it needs to take them back, and then without."""
    write = StagedTensors.write
    failing = dist.get_rank() == 1

    def halfway(staged: StagedTensors) -> Loaded:
        if not failing:
            return write(staged)
        half = staged._writes[: len(staged._writes) // 2]
        write(StagedTensors(half))
        raise PartlyWritten((one.key for one in half), OSError("no more"))

    def script(engine: Engine) -> dict[str, object]:
        update = UpdateWeightsFromTensor("half", tensors=stored(second))
        said: dict[str, object] = {"why": engine.update_weights(update).message, "sum": total(engine)}
        engine.perform(Flush("no more copies"), FlushReply)
        said["why not"] = engine.update_weights(dataclasses.replace(update, id="half-2")).message
        said["holds"] = list(engine.scheduler.state.gate.holds)
        assert engine.update_weights_from_disk(second).success
        said["mended"] = total(engine)
        assert not engine.scheduler.state.gate.holds
        return said

    StagedTensors.write = halfway  # type: ignore[method-assign, assignment]
    try:
        return together(path, script, prepare=_forget_old_values_after_a_flush)
    finally:
        StagedTensors.write = write  # type: ignore[method-assign]


def _forget_old_values_after_a_flush(engine: Engine) -> None:
    def forget() -> None:
        engine.weights.store.rollback_bytes = 0

    engine.scheduler.register(Participant("old values", forget))


def no_numbers(path: str) -> Seen:
    def script(engine: Engine) -> dict[str, object]:
        bad = stored(path)["model.layers.1.mlp.up_proj.weight"].clone()
        bad[-1, -1] = float("nan")  # in the part of rank 1
        update = UpdateWeightsFromTensor("bad", tensors={"model.layers.1.mlp.up_proj.weight": bad})
        return {"why": engine.update_weights(update).message, "sum": total(engine)}

    return together(path, script, {"refuse_nonfinite_weights": True})


# -- Failures -------------------------------------------------------------------------------------------------


@dataclass
class Faulty:
    """What a rank exchanges by: at one of its calls, counted from 1, it does something else."""

    exchange: Exchange
    at: int
    act: str
    calls: int = 0
    short: float = 2.0
    until: str = ""  # a file whose coming wakes a rank that stands still

    def sum(self, tensor: torch.Tensor) -> None:
        self._count()
        self.exchange.sum(tensor)

    def gather(self, part: torch.Tensor, shapes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        self._count()
        return self.exchange.gather(part, shapes)

    def _count(self) -> None:
        self.calls += 1
        if self.calls != self.at:
            return
        if self.act == "raise":
            raise ValueError("a cosmic ray")
        if self.act == "memory":
            raise torch.OutOfMemoryError("no room for an activation")
        if self.act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.act == "stop":  # for longer than anybody waits
            told = [str(os.getpid()), str(3 * self.short), self.until]
            subprocess.Popen([sys.executable, "-c", _WAKE, *told])
            os.kill(os.getpid(), signal.SIGSTOP)


_WAKE = """
import os, signal, sys, time
process, seconds, until = sys.argv[1:]
end = time.monotonic() + float(seconds)
while time.monotonic() < end and not os.path.exists(until):
    time.sleep(0.05)
os.kill(int(process), signal.SIGCONT)
"""


SHORT = 4.0  # seconds, the timeout of ranks of which one stands still


@dataclass
class Lost:
    """How a rank came to its end."""

    raised: str = ""
    seconds: float = 0.0  # from the fault on
    told: list[str] = field(default_factory=list)  # what the requests ended with
    healthy: bool = True
    lost: str = ""


def broken(
    path: str,
    at: int,
    act: str,
    verb: bool = False,
    faulty: int = 1,
    device: str = "cpu",
    short: float = SHORT,
    until: str = "",
) -> Lost:
    """A rank fails at an exchange of a pass, or of a verb that puts weights together.

    Args:
        until: a file that rank 0 writes once it has given up.
    """
    ranks = RankGroup(timeout=short if act == "stop" else 240, heartbeat=0.1)
    config = EngineConfig(kv_tokens=KV_TOKENS, tensor_parallel=ranks.size)
    engine = Engine.open(path, device, ranks=ranks, config=config)
    engine.weights.store.stage_beside = 0
    assert engine.runner.sharding is not None
    scheduler = cast("LockstepScheduler", engine.scheduler)
    if ranks.rank == faulty:
        engine.runner.sharding.exchange = Faulty(
            engine.runner.sharding.exchange, at, act, short=short, until=until
        )
    end, started = Lost(), time.monotonic()
    try:
        if ranks.rank:
            scheduler.follow()
        elif verb:
            end.told = [engine.perform(ChecksumWeights("sum"), ChecksumReply).message]
            engine.step()
        else:
            end.told = [
                one.finish.message for one in engine.generate(PROMPTS, max_new_tokens=4) if one.finish
            ]
    except RankLost as lost:
        end.raised = str(lost)
    end.seconds = time.monotonic() - started
    if until and not ranks.rank:
        Path(until).touch()
    end.healthy, end.lost = scheduler.state.healthy, str(ranks.lost)
    return end


def prepared(path: str, error: str) -> Seen:
    """Rank 1 cannot prepare its second pass, once."""

    def script(engine: Engine) -> dict[str, object]:
        said: dict[str, object] = {"tokens": generate(engine), "again": generate(engine)}
        return {**said, "healthy": engine.scheduler.state.healthy}

    def prepare(engine: Engine) -> None:
        if not dist.get_rank():
            return
        runner, passes = engine.runner, 0
        unharmed = runner.prepare

        def fail_once(batch: ForwardBatch) -> Callable[[], StepOutput]:
            nonlocal passes
            passes += 1
            if passes == 2:
                raise torch.OutOfMemoryError("no more") if error == "memory" else ValueError("a cosmic ray")
            return unharmed(batch)

        runner.prepare = fail_once  # type: ignore[method-assign]

    return together(path, script, prepare=prepare)


# -- Vendors --------------------------------------------------------------------------------------------------


class Acme(CpuBackend):
    """A vendor of which neither torch nor transformers knows anything."""

    collectives = "accl"

    @hookimpl
    def collective_backend(self) -> str:
        return self.collectives


class Nothing(Acme):
    collectives = ""


def _register(backend: type[Acme]) -> None:
    keys = {"name": "acme", "device_type": "cpu", "contract": ">=1.0,<2", "indexed": False}
    register_backend(backend, Manifest.parse({"backend": keys}))


def of_acme(path: str, installed: bool, names_any: bool = True) -> Seen | str:
    """On a device whose plugin names its own library of collectives."""
    _register(Acme if names_any else Nothing)
    if installed:
        _install_accl()
    try:
        return together(path, lambda engine: {"tokens": generate(engine)}, device="acme")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        unregister_backend("acme")


def broken_on_acme(path: str, at: int) -> Lost:
    _register(Acme)
    _install_accl()
    try:
        return broken(path, at, "raise", device="acme")
    finally:
        unregister_backend("acme")


def _install_accl() -> None:
    """As a vendor's package does when it is imported."""
    if not hasattr(dist.Backend, "ACCL"):
        dist.Backend.register_backend("accl", _make_accl, devices=["cpu"])


def _make_accl(store: Store, rank: int, size: int, timeout: timedelta) -> ProcessGroupGloo:
    return ProcessGroupGloo(store, rank, size, timeout)


def with_a_draft(path: str) -> str:
    ranks = RankGroup(timeout=240, heartbeat=0.1)
    config = EngineConfig(kv_tokens=KV_TOKENS, tensor_parallel=ranks.size)
    try:
        Engine.open(path, "cpu", ranks=ranks, config=config, draft=path)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
