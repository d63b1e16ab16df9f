"""DK-OPER: each operator that an engine sends to the device gives what the host gives."""

from __future__ import annotations

from devicekit_conformance.context import Context, expect
from devicekit_conformance.rulebook import requirement

_AFTER = ("DK-ORDER-001", "DK-CORE-004")


def _judge(ctx: Context, family: str) -> None:
    from devicekit_conformance.operators import family_of, faults_of, sent

    chosen = [one for one in sent() if family_of(one.operator) == family]
    device = ctx.device().torch_device
    faults = list(faults_of(chosen, device, ctx.note))
    ctx.hook("synchronize")(0)
    more = f" (and {len(faults) - 4} more)" if len(faults) > 4 else ""
    expect(not faults, "; ".join(faults[:4]) + more)


@requirement("DK-OPER-001", profile="operators", after=_AFTER, unwaivable=True)
def copies_are_copies(ctx: Context) -> None:
    """Copies, casts and fills MUST leave the data that the host would."""
    _judge(ctx, "copying")


@requirement("DK-OPER-002", profile="operators", after=["DK-OPER-001"], unwaivable=True)
def new_tensors_hold_what_they_should(ctx: Context) -> None:
    """Operators that make tensors MUST give the values, type and shape that the host gives."""
    _judge(ctx, "making")


@requirement("DK-OPER-003", profile="operators", after=["DK-OPER-001"], unwaivable=True)
def views_see_the_same_data(ctx: Context) -> None:
    """Views MUST see the data that the host's see, whatever their layout."""
    _judge(ctx, "viewing")


@requirement("DK-OPER-004", profile="operators", after=["DK-OPER-001"], unwaivable=True)
def indexing_reads_and_writes_the_right_places(ctx: Context) -> None:
    """Indexing MUST read and write the places that the host does, and no other.

    A KV pool is read and written by index: a wrong place is another request's data.
    """
    _judge(ctx, "indexing")


@requirement("DK-OPER-005", profile="operators", after=["DK-OPER-001"], unwaivable=True)
def calculations_agree(ctx: Context) -> None:
    """Calculations element by element MUST agree with the host's, exactly for whole numbers of 64 bits."""
    _judge(ctx, "calculating")


@requirement("DK-OPER-006", profile="operators", after=["DK-OPER-001"], unwaivable=True)
def comparisons_and_masks_agree(ctx: Context) -> None:
    """Comparisons and masks MUST be the host's, equal values and the edges of a mask included."""
    _judge(ctx, "comparing")


@requirement("DK-OPER-007", profile="operators", after=["DK-OPER-001"], unwaivable=True)
def reductions_and_orders_agree(ctx: Context) -> None:
    """Sums, softmax, sorting and the choice of the largest MUST agree with the host's."""
    _judge(ctx, "ordering")


@requirement("DK-OPER-008", profile="operators", after=["DK-OPER-001"], unwaivable=True)
def products_agree(ctx: Context) -> None:
    """Matrix products MUST agree with the host's within the precision of their type."""
    _judge(ctx, "multiplying")


@requirement("DK-OPER-009", profile="operators", after=["DK-OPER-001"], unwaivable=True)
def attention_agrees(ctx: Context) -> None:
    """Fused attention MUST agree with the host's for every query, mask and length, whatever its memory held.

    It is judged at the edges of tiles, over memory that was filled with rubbish: a kernel that leaves a row
    unwritten, or reads a key past the mask, gives other tokens and no error.
    """
    _judge(ctx, "attending")
