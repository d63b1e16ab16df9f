"""Bring the fleet's weights to engines that lack them: restarted, joined, or held after a failure."""

from __future__ import annotations

import asyncio
import uuid

from devicekit.fleet.agreement import notes
from devicekit.fleet.endpoint import Endpoint
from devicekit.fleet.errors import NoFleetWeights
from devicekit.fleet.fleet import Fleet
from devicekit.fleet.outcomes import FleetReply, MemberOutcome, MemberView, summary
from devicekit.fleet.record import FleetRecord, Phase, Served, Update
from devicekit.fleet.steps import Steps
from devicekit.fleet.update import LONG


async def tend(fleet: Fleet, *, timeout: float = LONG, verb: str = "tend") -> FleetReply:
    """Bring the fleet's weights to every engine that lacks them: restarted, joined, or held after a failure.

    Raises:
        FleetBusy: another verb is under way, or another fleet steers.
        FleetError: who belongs to the fleet cannot be found out.
        NoFleetWeights: which weights the fleet has is unknown.
    """
    async with fleet.steering(verb):
        record = fleet.file.record
        if record.update is not None:
            return FleetReply(
                False, f"The update to {record.update.version!r} is not finished: resume it first."
            )
        served = record.served
        if served is None:
            raise NoFleetWeights(
                "Which weights the fleet has is unknown: adopt what it serves, or update it."
            )
        steps = Steps(fleet, timeout=timeout)
        views = {one.member: one for one in await fleet.look()}
        tending = (
            _tend(fleet, steps, endpoint, views[endpoint.name], served) for endpoint in fleet.endpoints
        )
        outcomes = list(await asyncio.gather(*tending))
        failed = {one.member for one in outcomes if not one.success}
        views = {one.member: one for one in await fleet.look()}
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


async def _tend(
    fleet: Fleet, steps: Steps, endpoint: Endpoint, view: MemberView, served: Served
) -> MemberOutcome:
    if not view.reachable:
        return MemberOutcome(view.member, False, view.message)
    if not needs_tending(fleet.file.record, view):
        return MemberOutcome(view.member, True, "has the fleet's weights")
    update = Update(f"tend-{uuid.uuid4().hex}", served.path or "", served.version, Phase.ROLLING)
    if view.weight_version != served.version and served.path is None:
        await steps.hold([endpoint], update)
        message = f"has {view.weight_version!r}, and where the fleet's {served.version!r} is, nobody said"
        return MemberOutcome(view.member, False, f"{message}: it generates nothing")
    return (await steps.bring(endpoint, update, expected=served.checksum, finish=False)).outcome
