"""Brings the fleet's weights to engines that lack them: restarted, joined, or held after a failure.

They come from their path, if it is known. An engine that cannot read them there gets them from engines that have
them.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

from devicekit.contract.text import shown
from devicekit.fleet.agreement import notes
from devicekit.fleet.endpoint import Endpoint
from devicekit.fleet.errors import NoFleetWeights
from devicekit.fleet.fleet import Fleet
from devicekit.fleet.outcomes import FleetReply, MemberOutcome, MemberView, still_waiting, summary
from devicekit.fleet.peers import Peers
from devicekit.fleet.record import FleetRecord, Phase, Served, Update
from devicekit.fleet.steps import Steps
from devicekit.fleet.update import LONG

_PEERS = 3  # that an engine asks for the weights, one after the other


async def tend(fleet: Fleet, *, timeout: float = LONG, verb: str = "tend") -> FleetReply:
    """Bring the fleet's weights to every engine that lacks them: restarted, joined, or held after a failure.

    Raises:
        FleetBusy: another verb is under way, or another fleet steers.
        FleetError: who belongs to the fleet cannot be found out.
        NoFleetWeights: which weights the fleet has is unknown.
    """
    async with fleet.steering(verb) as claims:
        record = fleet.file.record
        if record.update is not None:
            return FleetReply(
                False, f"The update to {shown(record.update.version)} is not finished: resume it first."
            )
        served = record.served
        if served is None:
            raise NoFleetWeights(
                "Which weights the fleet has is unknown: adopt what it serves, or update it."
            )
        steps = Steps(fleet, timeout=timeout)
        views = {one.member: one for one in await fleet.survey(claims)}
        peers = Peers(one.member for one in views.values() if _has(record, one))
        tending = (
            _tend(fleet, steps, endpoint, views[endpoint.name], served, peers) for endpoint in fleet.endpoints
        )
        outcomes = list(await asyncio.gather(*tending))
        views = {one.member: one for one in await fleet.look()}
        outcomes = still_waiting(outcomes, list(views.values()))
        failed = {one.member for one in outcomes if not one.success}
        held = tuple(
            one.name
            for one in fleet.endpoints
            if one.name in failed and (one.name in record.held or not views[one.name].serving)
        )
        fleet.file.save(held=held)
        version = served.version if not failed else None
        return FleetReply(
            not failed,
            summary("tend", outcomes),
            tuple(outcomes),
            "",
            version,
            held,
            notes(list(views.values())),
        )


def needs_tending(record: FleetRecord, view: MemberView) -> bool:
    """Whether an engine that answers lacks the fleet's weights, or does not generate though it has them."""
    if record.served is None or not view.reachable:
        return False
    return bool(
        view.weight_version != record.served.version or view.awaits_fleet or view.member in record.held
    )


def _has(record: FleetRecord, view: MemberView) -> bool:
    """Whether an engine generates with the fleet's weights, as far as it says."""
    return view.reachable and view.awaits_fleet is False and not needs_tending(record, view)


async def _tend(
    fleet: Fleet, steps: Steps, endpoint: Endpoint, view: MemberView, served: Served, peers: Peers
) -> MemberOutcome:
    if not view.reachable:
        return MemberOutcome(view.member, False, view.message)
    if not needs_tending(fleet.file.record, view):
        return MemberOutcome(view.member, True, "has the fleet's weights")
    if view.weight_version == served.version or served.path is not None:
        outcome = await _bring(steps, endpoint, served)
    else:
        [held] = await steps.hold([endpoint], _update(served))
        message = (
            f"has {shown(view.weight_version)}, and where the fleet's {shown(served.version)} is, nobody said"
        )
        outcome = MemberOutcome(view.member, False, f"{message}: it generates nothing", held.status)
    tried: set[str] = {endpoint.name}
    # Who does not answer would not answer again: the next look finds it.
    while not outcome.success and outcome.status is not None and len(tried) <= _PEERS:
        async with peers.one(tried) as peer:
            if peer is None:
                break
            tried.add(peer)
            again = await _bring(steps, endpoint, served, peer)
        if again.success:
            outcome = replace(again, message=f"took the weights of {peer}")
        else:
            outcome = replace(again, message=f"{outcome.message}; from {peer}: {again.message}")
    if outcome.success:
        await peers.add(endpoint.name)
    return outcome


async def _bring(steps: Steps, endpoint: Endpoint, served: Served, peer: str | None = None) -> MemberOutcome:
    brought = await steps.bring(endpoint, _update(served), expected=served.checksum, finish=False, peer=peer)
    return brought.outcome


def _update(served: Served) -> Update:
    """An update with a new id: what was committed under an id is not committed again."""
    identity = f"tend-{uuid.uuid4().hex}"
    return Update(identity, served.path or "", served.version, Phase.ROLLING, checksum=served.checksum)
