"""What the simulated accelerator needs to know of an operator, read from its schema once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

__all__ = ["OperatorTraits", "traits_of"]

#: Operators that, as on real devices, also take index tensors that live on the host.
HOST_INDEXED = frozenset({"aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index"})
#: Operators that hand a value to the host, so that the host waits for the stream.
READ_BACK = frozenset({"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::item"})
#: Composites that run as one kernel: what the host runs for them is not what they are made of.
WHOLE = frozenset({"aten::scaled_dot_product_attention"})


@dataclass(frozen=True, slots=True)
class OperatorTraits:
    """How to run one operator on inner tensors and what to make of its results."""

    name: str
    # The result is a view: no kernel runs, and result and argument share storage.
    is_view: bool
    # For each result: position and name of the argument that it is, or None for a new tensor.
    returned: tuple[tuple[int, str] | None, ...]
    # Positions and names of the arguments that it writes to.
    written: tuple[tuple[int, str], ...]
    # It changes how its first argument lies in memory, as resize_ does.
    reshapes: bool
    takes_generator: bool
    is_random: bool
    waits: bool
    # Its second argument lists indices, which may be masks.
    takes_masks: bool
    host_indices: bool
    # Made of other operators, which torch usually takes apart before it gets here, but not in inference mode.
    composite: bool


@cache
def traits_of(func: torch._ops.OpOverload) -> OperatorTraits:
    schema = func._schema
    arguments = schema.arguments
    returned: list[tuple[int, str] | None] = []
    for result in schema.returns:
        written = None
        if result.alias_info is not None:
            names = result.alias_info.before_set
            for position, argument in enumerate(arguments):
                if argument.alias_info is None or not argument.alias_info.before_set & names:
                    continue
                if result.alias_info.is_write:
                    written = (position, argument.name)
        returned.append(written)
    tags = func.tags
    masks = schema.name in HOST_INDEXED
    waits = torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags
    return OperatorTraits(
        name=schema.name,
        is_view=func.is_view,  # also of operators that return a list of views
        returned=tuple(returned),
        written=tuple(
            (position, argument.name)
            for position, argument in enumerate(arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ),
        reshapes=torch.Tag.inplace_view in tags,
        takes_generator=any(argument.name == "generator" for argument in arguments),
        is_random=torch.Tag.nondeterministic_seeded in tags,
        waits=(waits and not masks) or schema.name in READ_BACK,
        takes_masks=masks,
        host_indices=masks,
        composite=schema.name not in WHOLE and func._can_decompose(),
    )
