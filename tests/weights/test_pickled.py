"""Pickles of shared tensors: what a trainer sends is read, and nothing that anybody else puts in is run."""

from __future__ import annotations

import builtins
import io
import multiprocessing.resource_sharer
import os
import pickle
import subprocess
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
import torch.multiprocessing.reductions as reductions

from devicekit.scheduling.errors import InvalidOperation
from devicekit.weights.pickled import PickleRefused, read_pickled
from tests.programs import Program
from tools.warm import Warm


def shared(value: object, protocol: int | None = None) -> bytes:
    """As trainers pickle it."""
    buffer = io.BytesIO()
    ForkingPickler(buffer, protocol).dump(value)
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("strategy", ["file_descriptor", "file_system"])
def test_named_tensors_are_read_whatever_their_kind(strategy: str, protocol: int) -> None:
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy(strategy)
    try:
        whole = torch.arange(12.0).reshape(3, 4)
        parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        sent = [
            ("a", whole),
            ("column", whole[:, 1]),
            ("p", parameter),
            ("none", torch.empty(0, 3)),
            ("b", whole),
        ]
        found = read_pickled(shared(sent, protocol))
    finally:
        torch.multiprocessing.set_sharing_strategy(before)
    assert list(found) == [name for name, _ in sent]
    for name, tensor in sent:
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach())


class _Call:
    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.made = (call, arguments)

    def __reduce__(self) -> object:
        return self.made


def _attack(name: str, flag: Path) -> bytes:
    """Each of these leaves ``flag`` behind if anything in it is run."""
    touch = f"open({str(flag)!r}, 'w').close()"
    loadable = io.BytesIO()
    torch.save(_Call(os.system, f"touch {flag}"), loadable)
    storage = _Call(torch.storage._load_from_bytes, loadable.getvalue())
    text = touch.encode()
    return {
        "system": pickle.dumps(_Call(os.system, f"touch {flag}")),
        "eval": pickle.dumps([("a", _Call(builtins.eval, touch.replace("open", "__import__('io').open")))]),
        "exec": pickle.dumps(_Call(builtins.exec, touch)),
        "nested": pickle.dumps([("a", _Call(reductions.rebuild_tensor, _Call(os.system, f"touch {flag}"), 1, 2))]),
        "torch.load": pickle.dumps(_Call(torch.load, str(flag))),
        "storage from bytes": pickle.dumps(_Call(torch._utils._rebuild_tensor_v2, storage, 0, (1,), (1,))),
        "getattr": pickle.dumps(_Call(getattr, _Call(__import__, "os"), "system")),
        "traversal": b"\x80\x04" + _text("torch.multiprocessing.reductions") + _text("os.system") + b"\x93"
        + _text(f"touch {flag}") + b"\x85R.",
        "traversal of a class": b"\x80\x04" + _text("multiprocessing.resource_sharer")
        + _text("DupFd.__init__.__globals__") + b"\x93.",
        "old opcodes": b"(S'touch " + str(flag).encode() + b"'\nios\nsystem\n.",
        "global": b"cos\nsystem\n(S'touch " + str(flag).encode() + b"'\ntR.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"\x80\x02Pnobody\n.",
        "function with a state": b"\x80\x04" + _text("torch.multiprocessing.reductions")
        + _text("rebuild_typed_storage") + b"\x93}" + _text("call") + _text("x") + b"sb.",
        "class with a state": b"\x80\x04" + _text("multiprocessing.resource_sharer") + _text("DupFd")
        + b"\x93}" + _text("__setstate__") + _text("x") + b"sb.",
        "memory": b"\x80\x04Nr\xff\xff\xff\x7f.",
        "huge bytes": b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.",
        "no pickle": b"\x80\x04" + text,
        "ends early": shared([("a", torch.ones(3))])[:-9],
        "module": pickle.dumps([("a", torch.nn.Linear(2, 2))]),
        "text": pickle.dumps("a"),
        "names": pickle.dumps([("a", 7)]),
    }[name]  # fmt: skip


def _text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


_ATTACKS = (
    "system", "eval", "exec", "nested", "torch.load", "storage from bytes", "getattr", "traversal",
    "traversal of a class", "old opcodes", "global", "extension", "persistent", "function with a state",
    "class with a state", "memory", "huge bytes", "no pickle", "ends early", "module", "text", "names",
)  # fmt: skip


@pytest.mark.parametrize("name", _ATTACKS)
def test_nothing_in_a_pickle_is_run(name: str, tmp_path: Path) -> None:
    flag = tmp_path / "run"
    with pytest.raises(PickleRefused):
        read_pickled(_attack(name, flag))
    assert not flag.exists()
    good = read_pickled(shared([("a", torch.ones(3))]))  # and nothing was changed for those who come later
    assert torch.equal(good["a"], torch.ones(3))


def _handed_over(sender: object, size: int = 8) -> bytes:
    descriptor = multiprocessing.resource_sharer.DupFd.__new__(multiprocessing.resource_sharer.DupFd)
    descriptor._id = sender
    storage = _Call(reductions.rebuild_storage_fd, torch.UntypedStorage, descriptor, size)
    return _tensor(storage)


def _named(manager: bytes, handle: bytes, size: int = 8) -> bytes:
    return _tensor(_Call(reductions.rebuild_storage_filename, torch.UntypedStorage, manager, handle, size))


def _tensor(storage: object, shape: tuple[object, ...] = (2,), stride: tuple[int, ...] = (1,)) -> bytes:
    typed = _Call(reductions.rebuild_typed_storage, storage, torch.float32)
    return pickle.dumps(
        [("a", _Call(reductions.rebuild_tensor, torch.Tensor, typed, (0, shape, stride, False)))]
    )


@pytest.mark.parametrize(
    "content",
    [
        _handed_over(("/run/docker.sock", 1)),
        _handed_over(("10.0.0.1", 80)),
        _handed_over((("10.0.0.1", 80), 1)),
        _handed_over(("/tmp/pymp-none/listener-none", 1)),
        _handed_over(None),
        _named(b"/etc/passwd", b"/torch_1_1_1"),
        _named(b"/tmp/torch-shm-dir-x/manager.sock", b"/../../etc/passwd"),
        _named(b"/tmp/torch-shm-dir-x/manager.sock", b"/torch_1_1_1"),
        _handed_over(("/tmp/pymp-none/listener-none", 1), -8),
        _handed_over(("/tmp/pymp-none/listener-none", 1), 4),
        _tensor(_Call(reductions.rebuild_storage_empty, torch.UntypedStorage)),
        _tensor(_Call(reductions.rebuild_storage_empty, torch.UntypedStorage), (-1,)),
        _tensor(_Call(reductions.rebuild_storage_empty, torch.UntypedStorage), (1, 1)),
    ],
)
def test_memory_is_looked_for_nowhere_else_and_never_beyond_its_end(content: bytes) -> None:
    with pytest.raises(InvalidOperation):
        read_pickled(content)


def test_memory_that_is_shorter_than_announced_is_refused() -> None:
    kept = torch.ones(2)
    rebuild, (kind, descriptor, size) = reductions.reduce_storage(kept.untyped_storage())
    assert (rebuild, size) == (reductions.rebuild_storage_fd, 8)
    with pytest.raises(InvalidOperation, match="has 8 bytes, not the 16384"):
        read_pickled(_tensor(_Call(rebuild, kind, descriptor, 16384)))


def test_strangers_that_hand_over_descriptors_are_told_to_share_by_name(warm: Warm) -> None:
    code = (
        "import io, sys, torch\nfrom multiprocessing.reduction import ForkingPickler\n"
        "import torch.multiprocessing\nbuffer = io.BytesIO()\n"
        "ForkingPickler(buffer).dump([('a', torch.ones(3))])\n"
        "print(buffer.getvalue().hex(), flush=True)\nsys.stdin.readline()\n"
    )
    command = [*warm.python, "-c", code]
    with Program(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stranger:
        assert stranger.stdin is not None
        assert stranger.stdout is not None
        content = bytes.fromhex(stranger.stdout.readline())
        with pytest.raises(InvalidOperation, match="file_system"):
            read_pickled(content)
        stranger.stdin.write("end\n")
