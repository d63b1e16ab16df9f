"""Inputs for the operators that an engine sends: as it sends them, larger, and where faults hide."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from devicekit_conformance.operators.sent import Sent

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "copying": ("_to_copy", "copy_", "clone", "fill_", "lift_fresh", "detach", "masked_fill", "masked_fill_"),
    "making": (
        "arange",
        "empty",
        "zeros",
        "ones",
        "full",
        "scalar_tensor",
        "eye",
        "_like",
        "new_",
        "empty_strided",
    ),
    "viewing": (
        "view",
        "_unsafe_view",
        "reshape",
        "permute",
        "transpose",
        "t",
        "expand",
        "slice",
        "select",
        "squeeze",
        "unsqueeze",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "as_strided",
        "alias",
        "unfold",
        "diagonal",
    ),
    "indexing": (
        "index",
        "index_put",
        "index_put_",
        "index_copy",
        "index_copy_",
        "index_select",
        "index_add",
        "index_add_",
        "gather",
        "scatter",
        "scatter_",
        "scatter_add",
        "scatter_add_",
        "embedding",
        "take_along_dim",
        "nonzero",
        "masked_select",
        "repeat_interleave",
        "slice_scatter",
        "select_scatter",
        "index_fill_",
        "histc",
        "bincount",
    ),
    "comparing": (
        "ge",
        "gt",
        "le",
        "lt",
        "eq",
        "ne",
        "where",
        "logical_and",
        "logical_or",
        "logical_not",
        "bitwise_and",
        "bitwise_and_",
        "bitwise_or",
        "bitwise_not",
        "bitwise_or_",
        "isnan",
        "isinf",
        "tril",
        "triu",
        "any",
        "all",
    ),
    "ordering": (
        "sort",
        "topk",
        "argmax",
        "argmin",
        "argsort",
        "max",
        "min",
        "amax",
        "amin",
        "_softmax",
        "_log_softmax",
        "logsumexp",
        "cumsum",
        "cumprod",
        "sum",
        "mean",
        "prod",
        "var",
        "std",
        "multinomial",
    ),
    "multiplying": (
        "mm",
        "bmm",
        "addmm",
        "baddbmm",
        "matmul",
        "dot",
        "convolution",
        "_grouped_mm",
        "linear",
        "_convolution",
        "native_layer_norm",
        "rms_norm",
        "native_group_norm",
    ),
    "attending": ("scaled_dot_product_attention",),
}
_REST = "calculating"  # element by element
_INDEX_FAMILY = "indexing"
_WIDE = 1 << 40  # beyond what 32 bits hold
_LARGEST = 1 << 17  # elements of one tensor; a case with more says nothing more
# Tile edges, where fused attention goes wrong: queries and keys.
_ATTENTION_SIZES = ((1, 1), (1, 17), (7, 33), (16, 64), (17, 129), (65, 65))


# Which argument says where an operator writes.
_WRITTEN_BY = {
    "index_copy_": 2,
    "index_copy": 2,
    "index_put_": 1,
    "index_put": 1,
    "scatter_": 2,
    "scatter": 2,
}


class TooLarge(ValueError):
    """A case that would take more time than it tells, or that has no one right result."""


@dataclass(frozen=True)
class Case:
    """One operator with arguments on the host; ``make`` gives the same ones each time it is called."""

    sent: Sent
    what: str
    make: Callable[[], tuple[list[object], dict[str, object]]]

    def __str__(self) -> str:
        return f"{self.sent.operator.removeprefix('aten.')}({self.what})"


def family_of(operator: str) -> str:
    """Which family an operator is judged with."""
    name = operator.split(".")[1]
    for family, names in FAMILIES.items():
        if name in names or (family == "making" and name.removesuffix("_").endswith("_like")):
            return family
        if family == "making" and name.startswith("new_"):
            return family
    return _REST


def cases_of(one: Sent) -> Iterator[Case]:
    """The operator as it was sent, and what else the same call must survive."""
    yield _case(one, "", _Maker(one))
    if family_of(one.operator) == "attending":
        for queries, keys in _ATTENTION_SIZES:
            yield _case(one, f"{queries} queries, {keys} keys", _Maker(one, attention=(queries, keys)))
        return
    if family_of(one.operator) != "viewing":  # a view names its sizes
        yield _case(one, "larger", _Maker(one, larger=True))
    if _has_wide(one):
        yield _case(one, "numbers beyond 32 bits", _Maker(one, wide=True))


def _case(one: Sent, why: str, maker: _Maker) -> Case:
    what = ", ".join(_brief(argument) for argument in one.arguments if isinstance(argument, (dict, list)))
    return Case(one, f"{what}; {why}" if why else what, maker)


def _brief(argument: object) -> str:
    if isinstance(argument, dict) and "shape" in argument:
        layout = "" if "strides" not in argument else " strided"
        return f"{argument['dtype']}{argument['shape']}{layout}"
    if isinstance(argument, list):
        return "[" + ", ".join(_brief(inner) for inner in argument if inner is not None) + "]"
    return str(argument)


def _has_wide(one: Sent) -> bool:
    """Whether whole numbers of 64 bits are data here, and come out as such or as truth values."""
    if family_of(one.operator) in (_INDEX_FAMILY, "making", "multiplying"):
        return False
    narrowing = any(isinstance(word, dict) and "torch" in word for word in one.keywords.values())
    return not narrowing and any(
        isinstance(argument, dict) and argument.get("dtype") == "int64" for argument in one.arguments
    )


class _Maker:
    """Makes the arguments of one case from their description, the same each time."""

    def __init__(
        self, one: Sent, *, larger: bool = False, wide: bool = False, attention: tuple[int, int] | None = None
    ) -> None:
        self._one, self._larger, self._wide, self._attention = one, larger, wide, attention

    def __call__(self) -> tuple[list[object], dict[str, object]]:
        self._random = random.Random(repr(self._one.as_data()))
        self._generator = torch.Generator().manual_seed(self._random.randrange(1 << 31))
        arguments = [self._made(value, place) for place, value in enumerate(self._one.arguments)]
        return arguments, {key: self._made(value, -1) for key, value in self._one.keywords.items()}

    def _made(self, value: object, place: int) -> object:
        if isinstance(value, list):
            return [self._made(inner, place) for inner in value]
        if not isinstance(value, dict):
            return value
        if "shape" in value:
            return self._tensor(value, place)
        if "device" in value:
            return torch.device("cpu")
        if "float" in value:
            return float(value["float"])
        return getattr(torch, str(value["torch"]))

    def _tensor(self, told: Mapping[str, object], place: int) -> torch.Tensor:
        shape = self._shape(told, place)
        dtype: torch.dtype = getattr(torch, str(told["dtype"]))
        values = self._values(told, shape, dtype, place)
        strides = told.get("strides")
        return _laid_out(values, strides) if isinstance(strides, list) else values

    def _shape(self, told: Mapping[str, object], place: int) -> list[int]:
        found = told["shape"]
        assert isinstance(found, list)
        shape = [int(size) for size in found]
        if self._attention is not None and len(shape) >= 2:
            queries, keys = self._attention
            if told["dtype"] == "bool" or place > 2 or place < 0:
                return [*shape[:-2], queries if shape[-2] > 1 else 1, keys]
            shape[-2] = queries if place == 0 else keys
            return shape
        # One map for every size of the call, so that what had to agree still does.
        grown = [size if size <= 1 else size * 3 + 1 for size in shape] if self._larger else shape
        if math.prod(grown) > _LARGEST:
            raise TooLarge
        return grown

    def _values(
        self, told: Mapping[str, object], shape: list[int], dtype: torch.dtype, place: int
    ) -> torch.Tensor:
        generator, family = self._generator, family_of(self._one.operator)
        if dtype is torch.bool:
            drawn = torch.rand(shape, generator=generator) < 0.6
            if family == "attending" and drawn.dim() >= 2:  # each query sees something, and not the same
                band = torch.ones(shape, dtype=torch.bool).tril(shape[-1] - shape[-2])
                drawn = (drawn & band) | (band & ~band.roll(1, -1)) | torch.eye(*shape[-2:], dtype=torch.bool)
            return drawn
        if dtype.is_floating_point:
            if family == "comparing":  # equal values, where a comparison is off by one
                return torch.randint(-2, 3, shape, generator=generator).to(dtype)
            drawn = torch.randn(shape, generator=generator)
            positive = self._one.operator.split(".")[1] in ("rsqrt", "sqrt", "log", "reciprocal", "pow")
            return (drawn.abs() + 0.1 if positive else drawn).to(dtype)
        if _WRITTEN_BY.get(self._one.operator.split(".")[1]) == place:
            return self._places(told, shape, dtype)
        return self._whole(told, shape, dtype)

    def _places(self, told: Mapping[str, object], shape: list[int], dtype: torch.dtype) -> torch.Tensor:
        """Places to write to, none of them twice: who writes last is nobody's promise."""
        target = self._one.arguments[0]
        assert isinstance(target, dict)
        rows = self._shape(target, 0)[0] if self._larger else int(str(told.get("high", 0))) + 1
        low, count = 0 if self._larger else int(str(told.get("low", 0))), math.prod(shape)
        if rows - low < count:
            raise TooLarge
        return (torch.randperm(rows - low, generator=self._generator)[:count] + low).reshape(shape).to(dtype)

    def _whole(self, told: Mapping[str, object], shape: list[int], dtype: torch.dtype) -> torch.Tensor:
        low, high = int(str(told.get("low", 0))), int(str(told.get("high", 3)))
        count = math.prod(shape)
        if self._wide and dtype is torch.int64:
            drawn = torch.randint(-_WIDE, _WIDE, shape, generator=self._generator)
            return torch.where(drawn == 0, _WIDE, drawn)
        if told.get("distinct") and high - low + 1 >= count:
            chosen = torch.randperm(high - low + 1, generator=self._generator)[:count] + low
            return chosen.reshape(shape).to(dtype)
        if family_of(self._one.operator) == "comparing":
            high = min(high, low + 4)
        return torch.randint(low, high + 1, shape, generator=self._generator).to(dtype)


def _laid_out(values: torch.Tensor, strides: list[object]) -> torch.Tensor:
    """The same values in a layout like the one that was sent: an expanded, a permuted or a strided view."""
    plain = [int(str(one)) for one in strides]
    if any(one == 0 for one, size in zip(plain, values.shape, strict=True) if size > 1):
        first = tuple(slice(0, 1) if one == 0 else slice(None) for one in plain)
        return values[first].contiguous().expand(values.shape)
    order = sorted(range(len(plain)), key=lambda place: -plain[place])
    back = [order.index(place) for place in range(len(plain))]
    permuted = values.permute(order).contiguous()
    if values.dim() == 0 or min(plain) == 1:
        return permuted.permute(back)
    spread = torch.stack([permuted, permuted], dim=-1)
    return spread[..., 0].permute(back)
