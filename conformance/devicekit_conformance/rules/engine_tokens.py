"""DK-ENGINE: the tokens of a model with real attention are those that the host works out."""

from __future__ import annotations

from devicekit_conformance.context import Context, expect
from devicekit_conformance.rulebook import requirement


@requirement("DK-ENGINE-004", profile="engine", after=["DK-ENGINE-001"], unwaivable=True)
def attention_gives_the_hosts_tokens(ctx: Context) -> None:
    """The tokens of a model with attention MUST be those that the host's double precision gives.

    Its keys and values lie in the device's KV pool and are read through torch's fused attention with a mask; two
    tokens that are equally likely may be taken for one another.
    """
    from devicekit_conformance.attention_model import token_faults

    faults = list(token_faults(ctx.device()))
    expect(not faults, "; ".join(faults[:3]))
