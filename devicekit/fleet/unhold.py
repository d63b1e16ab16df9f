"""Lets engines serve what they have when the fleet that held them is gone: an operator's last resort."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping

from devicekit.contract.text import shown
from devicekit.fleet.endpoint import Answer, Endpoint, Unreachable
from devicekit.fleet.outcomes import MemberOutcome, MemberView

_MOST = 30.0  # seconds for an answer


async def held_view(endpoint: Endpoint) -> MemberView:
    """What an engine says of itself. `held_by` reads from it who has the engine."""
    return MemberView.of(await _call(endpoint, "/server_info", None))


def held_by(view: MemberView) -> str:
    """Who has an engine, as it says; empty: nobody, and it generates if nothing else prevents it."""
    if view.steered_by is not None:
        return view.steered_by
    return "a fleet that has not said who it is" if view.awaits_fleet else ""


async def release_hold(endpoint: Endpoint, view: MemberView) -> MemberOutcome:
    """Take an engine from its fleet, which can no longer steer it, and let it generate with what it has.

    Nothing is compared: whether these are the weights of any fleet is for the operator to know.
    """
    who = f"an operator (process {os.getpid()} on {socket.gethostname()})"
    claim = {"fleet": f"release-hold-{uuid.uuid4().hex}", "steered_by": who, "take_over": True}
    claimed = await _call(endpoint, "/claim_for_fleet", claim)
    lease = claimed.document.get("lease")
    if not claimed.success or not isinstance(lease, str):
        return claimed
    joined = await _call(endpoint, "/join_fleet", {"weight_version": view.weight_version, "lease": lease})
    ended = await _call(endpoint, "/end_fleet_claim", {"lease": lease})
    if not joined.success:
        return joined
    if not ended.success:
        return MemberOutcome(
            ended.member, False, f"generates, and is still claimed: {ended.message}", ended.status
        )
    return MemberOutcome(joined.member, True, f"belongs to no fleet, and serves {shown(view.weight_version)}")


async def _call(endpoint: Endpoint, path: str, body: Mapping[str, object] | None) -> MemberOutcome:
    try:
        answer: Answer = await endpoint.call(path, body, timeout=_MOST)
    except Unreachable as error:
        return MemberOutcome(endpoint.name, False, f"no answer ({error})")
    return MemberOutcome.of(endpoint.name, answer)
