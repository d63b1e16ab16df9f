"""The operators profile: its list is what an engine sends, honest devices pass, and wrong operators are caught."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from devicekit.testing import simulation
from devicekit_conformance.operators import FAMILIES, Sent, family_of, faults_of, sent
from examples.checkpoints import EXAMPLE_ARCHITECTURES
from tools.sent_operators import kind_of, trace

Operator = Callable[..., object]
Deed = Callable[[Operator, Sequence[object], Mapping[str, object]], object]


@pytest.fixture
def device() -> Iterator[torch.device]:
    with simulation():
        yield torch.device("sim", 0)


def test_the_list_is_what_an_engine_sends() -> None:
    """One architecture that all have in common and one by chance; `make operators` traces them all."""
    seed = random.SystemRandom().randrange(1 << 32)
    other = random.Random(seed).choice(EXAMPLE_ARCHITECTURES)
    print(f"seed {seed}: {other}")
    listed = {kind_of(one) for one in sent()}
    found = trace(dict.fromkeys(("llama", other)), (torch.float32,))
    missing = [json.dumps(one.as_data()) for kind, one in found.items() if kind not in listed]
    assert not missing, "write the list again: python -m tools.sent_operators --write"


def test_the_list_covers_each_family() -> None:
    families = {family_of(one.operator) for one in sent()}
    assert families == {*FAMILIES, "calculating"}
    assert len({kind_of(one) for one in sent()}) == len(sent())


def test_an_honest_device_has_no_fault(device: torch.device) -> None:
    chosen = random.Random(1).sample(sent(), 60) + [
        one for one in sent() if family_of(one.operator) == "attending"
    ]
    assert list(faults_of(chosen, device, lambda text: None)) == []


class _Wrong(TorchDispatchMode):
    """Does something else wherever one operator is called on the simulated device."""

    def __init__(self, name: str, deed: Deed) -> None:
        super().__init__()
        self._name, self._deed = name, deed

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        keywords = dict(kwargs or {})
        here = any(isinstance(one, torch.Tensor) and one.device.type == "sim" for one in args)
        if here and str(func).split(".")[1] == self._name:
            return self._deed(func, args, keywords)
        return func(*args, **keywords)


def _tensor(value: object) -> torch.Tensor:
    assert isinstance(value, torch.Tensor)
    return value


def _with(place: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Deed:
    """A deed that changes one argument."""

    def deed(func: Operator, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        changed = list(args)
        if place < len(changed) and isinstance(changed[place], torch.Tensor):
            changed[place] = change(_tensor(changed[place]))
        key = (
            {"attn_mask": change(_tensor(kwargs["attn_mask"]))}
            if "attn_mask" in kwargs and place == 3
            else {}
        )
        return func(*changed, **{**kwargs, **key})

    return deed


def _after(change: Callable[[torch.Tensor], torch.Tensor]) -> Deed:
    """A deed that changes the result."""
    return lambda func, args, kwargs: change(_tensor(func(*args, **kwargs)))


def _last_row_unwritten(result: torch.Tensor) -> torch.Tensor:
    found = torch.empty_like(result)
    found[..., :-1, :] = result[..., :-1, :]
    return found


def _other(name: str) -> Deed:
    """A deed that calls another operator instead."""

    def deed(func: Operator, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        operator, overload = getattr(torch.ops.aten, name), str(func).split(".")[2]
        return getattr(operator, overload)(*args, **kwargs)

    return deed


WRONG: dict[str, tuple[str, Deed]] = {
    "attention that leaves its memory as it was": ("scaled_dot_product_attention", _after(torch.empty_like)),
    "attention that forgets the last query": ("scaled_dot_product_attention", _after(_last_row_unwritten)),
    "attention with a mask off by one": (
        "scaled_dot_product_attention",
        _with(3, lambda mask: mask.roll(1, -1)),
    ),
    "attention without its mask": ("scaled_dot_product_attention", _with(3, lambda mask: mask | True)),
    "attention with another query's row": (
        "scaled_dot_product_attention",
        _after(lambda out: out.roll(1, -2)),
    ),
    "index_copy to the next place": ("index_copy_", _with(2, lambda index: index.roll(1))),
    "index_copy of one row too few": (
        "index_copy_",
        lambda func, args, kwargs: func(args[0], args[1], _tensor(args[2])[:-1], _tensor(args[3])[:-1]),
    ),
    "index_select clamped": ("index_select", _with(2, lambda index: index.clamp(max=1))),
    "gather off by one": ("gather", _with(2, lambda index: (index - 1).clamp(min=0))),
    "embedding of the next token": ("embedding", _with(1, lambda index: (index - 1).clamp(min=0))),
    "sums of 32 bits": (
        "add",
        _after(lambda out: out.to(torch.int32).to(out.dtype) if out.dtype == torch.int64 else out),
    ),
    "less for less or equal": ("le", _other("lt")),
    "greater for greater or equal": ("ge", _other("gt")),
    "cumsum without itself": ("cumsum", _after(lambda out: out.roll(1, -1))),
    "the last column of a product missing": (
        "mm",
        _after(lambda out: out * (torch.arange(out.shape[1], device=out.device) < out.shape[1] - 1)),
    ),
    "argmax of the neighbour": ("argmax", _after(lambda out: (out - 1).clamp(min=0))),
    "where turned round": ("where", lambda func, args, kwargs: func(args[0], args[2], args[1])),
    "rsqrt without the root": ("rsqrt", _other("reciprocal")),
    "a stride that is ignored": (
        "clone",
        lambda func, args, kwargs: func(_tensor(args[0]).flatten()).reshape(_tensor(args[0]).shape).flip(0),
    ),
    "softmax that is not normalised": ("_softmax", _after(lambda out: out * 1.05)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_operator_is_caught(name: str, device: torch.device) -> None:
    operator, deed = WRONG[name]
    chosen = [one for one in sent() if one.operator.split(".")[1] == operator]
    assert chosen
    with _Wrong(operator, deed):
        faults = list(faults_of(chosen, device, lambda text: None))
    assert faults
    assert operator in faults[0]


def test_an_operator_that_is_missing_is_named(device: torch.device) -> None:
    def missing(func: Operator, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        raise NotImplementedError("no kernel")

    chosen: list[Sent] = [one for one in sent() if one.operator == "aten.silu.default"]
    with _Wrong("silu", missing):
        faults = list(faults_of(chosen, device, lambda text: None))
    assert "the device does not have it: no kernel" in faults[0]
