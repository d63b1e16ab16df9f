"""Runs an operator on the host and on a device, and says where they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import cast

import torch
from torch.utils import _pytree as tree

from devicekit_conformance.operators.cases import Case, cases_of, family_of
from devicekit_conformance.operators.sent import Sent

# How far a result may be from the host's, as a part of the largest value that was expected.
TOLERANCES = {
    torch.float64: 1e-7,
    torch.float32: 2e-3,  # some devices multiply with ten bits less by default
    torch.float16: 1e-2,
    torch.bfloat16: 4e-2,
}
_PLACES = ("argmax", "argmin", "sort", "topk", "argsort", "max", "min")  # equal values may stand in any place
_POISON = (float("nan"), 3e38)


def faults_of(operators: Iterable[Sent], device: torch.device, note: Callable[[str], None]) -> Iterator[str]:
    """Every case in which the device does something else than the host, in words."""
    for one in operators:
        for case in cases_of(one):
            note(str(case))
            if (fault := _fault(case, device)) is not None:
                yield f"{case}: {fault}"
                break  # the next case of a broken operator says nothing new


def _fault(case: Case, device: torch.device) -> str | None:
    function = _function(case.sent.operator)
    try:
        arguments, keywords = case.make()
        expected = function(*arguments, **keywords)
    except (RuntimeError, IndexError, ValueError, TypeError):
        return None  # sizes that do not go together: not a call that anybody makes
    wanted = _results(case, expected, arguments)
    for poison in _POISON if family_of(case.sent.operator) == "attending" else _POISON[:1]:
        try:
            _poison(wanted, device, poison)
            moved, keyed = _moved(case, device)
            found = _results(case, function(*moved, **keyed), moved)
            got = [one.detach().cpu() for one in found]
        except NotImplementedError as error:
            return f"the device does not have it: {error}"
        except Exception as error:
            return f"it raised {type(error).__name__}: {error}"
        fault = _difference(case, wanted, got, arguments)
        if fault is not None:
            return fault
    return None


def _function(name: str) -> Callable[..., object]:
    namespace, operator, overload = name.split(".")
    return cast("Callable[..., object]", getattr(getattr(getattr(torch.ops, namespace), operator), overload))


def _moved(case: Case, device: torch.device) -> tuple[list[object], dict[str, object]]:
    """The case's arguments on the device, laid out as they are on the host; host tensors stay."""
    arguments, keywords = case.make()
    told = [*case.sent.arguments], dict(case.sent.keywords)
    moved = [_move(value, spec, device) for value, spec in zip(arguments, told[0], strict=True)]
    return moved, {key: _move(value, told[1][key], device) for key, value in keywords.items()}


def _move(value: object, spec: object, device: torch.device) -> object:
    if isinstance(value, list) and isinstance(spec, list):
        return [_move(inner, told, device) for inner, told in zip(value, spec, strict=True)]
    if isinstance(value, torch.device):
        return device if isinstance(spec, dict) and spec.get("device") == "here" else value
    if not isinstance(value, torch.Tensor) or (isinstance(spec, dict) and spec.get("host")):
        return value
    if value.is_contiguous() or not isinstance(spec, dict):
        return value.to(device)
    room = value.untyped_storage().size() // value.element_size()
    storage = torch.as_strided(value, (room,), (1,), 0).to(device)
    return storage.as_strided(value.shape, value.stride(), value.storage_offset())


def _results(case: Case, returned: object, arguments: list[object]) -> list[torch.Tensor]:
    """What the operator gave back, and what it changed in place."""
    found = _tensors(returned)
    if case.sent.operator.split(".")[1].endswith("_") and isinstance(arguments[0], torch.Tensor):
        found.append(arguments[0])
    return found


def _tensors(value: object) -> list[torch.Tensor]:
    return [one for one in tree.tree_leaves(value) if isinstance(one, torch.Tensor)]


def _poison(wanted: list[torch.Tensor], device: torch.device, value: float) -> None:
    """Leave rubbish in memory that the device's allocator may hand out next."""
    for one in wanted:
        size = one.numel() * one.element_size()
        del_me = torch.full((max(1, size // 4),), value, dtype=torch.float32, device=device)
        del del_me


def _difference(
    case: Case, wanted: list[torch.Tensor], got: list[torch.Tensor], arguments: list[object]
) -> str | None:
    if len(wanted) != len(got):
        return f"it returned {len(got)} tensors instead of {len(wanted)}"
    name = case.sent.operator.split(".")[1]
    undefined = "empty" in name
    for place, (host, there) in enumerate(zip(wanted, got, strict=True)):
        if host.dtype is not there.dtype or host.shape != there.shape:
            return f"it returned {_kind(there)} instead of {_kind(host)}"
        if undefined or host.numel() == 0:
            continue
        if name in _PLACES and (place == 1 or name.startswith("arg")):
            if (fault := _wrong_places(case, host, there, arguments)) is not None:
                return fault
            continue
        if (fault := _wrong_values(host, there)) is not None:
            return fault if len(wanted) == 1 else f"result {place + 1}: {fault}"
    return None


def _wrong_values(host: torch.Tensor, there: torch.Tensor) -> str | None:
    if not host.dtype.is_floating_point:
        wrong = host != there
    else:
        a, b = host.double(), there.double()
        finite = a.isfinite()
        scale = float(a[finite].abs().max()) if bool(finite.any()) else 1.0
        close = (a - b).abs() <= TOLERANCES.get(host.dtype, 0.0) * max(scale, 1e-3)
        wrong = ~(close & finite | (a == b) | (a.isnan() & b.isnan()))
    count = int(wrong.sum())
    if not count:
        return None
    at = tuple(int(one) for one in wrong.nonzero()[0]) if wrong.dim() else ()
    return (
        f"{count} of {host.numel()} values are wrong, such as {there[at].item()} instead of {host[at].item()}"
    )


def _wrong_places(case: Case, host: torch.Tensor, there: torch.Tensor, arguments: list[object]) -> str | None:
    """Places are right when they lie within the input, point at the same values, and differ where it is sorted."""
    source = next(one for one in arguments if isinstance(one, torch.Tensor))
    if source.dim() == 0:
        return None if int(there) == 0 else f"place {int(there)} of one value"
    dim = _dimension(case)
    if dim is None:
        flat = source.flatten()
        same = bool(0 <= int(there) < flat.numel()) and bool(flat[int(there)] == flat[int(host)])
        return None if same else f"place {int(there)} instead of {int(host)}"
    if there.dim() < source.dim():
        host, there = host.unsqueeze(dim), there.unsqueeze(dim)
    if int(there.min()) < 0 or int(there.max()) >= source.shape[dim]:
        return "places outside of the input"
    if not torch.equal(source.gather(dim, host), source.gather(dim, there)):
        return "places of other values"
    ordered = there.sort(dim).values
    twice = there.shape[dim] > 1 and bool((ordered.diff(dim=dim) == 0).any())
    return "one place twice" if twice else None


def _dimension(case: Case) -> int | None:
    """The dimension that an operator of places works along; ``None`` for the whole tensor."""
    name, given = case.sent.operator.split(".")[1], case.sent.arguments[1:]
    numbers = [one for one in (given[1:] if name == "topk" else given) if type(one) is int]
    named = case.sent.keywords.get("dim")
    if type(named) is int:
        return named
    return numbers[0] if numbers else (-1 if name in ("sort", "topk", "argsort") else None)


def _kind(one: torch.Tensor) -> str:
    return f"{str(one.dtype).removeprefix('torch.')}{list(one.shape)}"
