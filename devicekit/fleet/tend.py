"""Bring the fleet's weights to engines that lack them: restarted, joined, or held after a failure."""

from __future__ import annotations

import uuid

from devicekit.fleet.endpoint import Endpoint
from devicekit.fleet.errors import NoFleetWeights
from devicekit.fleet.fleet import Fleet
from devicekit.fleet.outcomes import FleetReply, MemberOutcome, MemberView, summary
from devicekit.fleet.record import Phase, Served, Update
from devicekit.fleet.update import LONG, FleetUpdate


async def tend(fleet: Fleet, *, timeout: float = LONG) -> FleetReply:
    """Bring the fleet's weights to every engine that lacks them: restarted, joined, or held after a failure.

    Raises:
        FleetBusy: another verb is under way.
        NoFleetWeights: which weights are the fleet's, or where they are, is unknown.
    """
    async with fleet.steering("tend"):
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
        updates = FleetUpdate(fleet, timeout=timeout)
        views = {one.member: one for one in await fleet.look()}
        outcomes = [
            await _tend(fleet, updates, endpoint, views[endpoint.name], served)
            for endpoint in fleet.endpoints
        ]
        held = tuple(one.member for one in outcomes if not one.success and one.member in record.held)
        fleet.file.save(held=held)
        version = served.version if all(one.success for one in outcomes) else None
        return FleetReply(version is not None, summary("tend", outcomes), tuple(outcomes), "", version, held)


async def _tend(
    fleet: Fleet, updates: FleetUpdate, endpoint: Endpoint, view: MemberView, served: Served
) -> MemberOutcome:
    if not view.reachable:
        return MemberOutcome(view.member, False, view.message)
    held = fleet.file.record.held
    if view.weight_version == served.version and not view.awaits_fleet and view.member not in held:
        return MemberOutcome(view.member, True, "has the fleet's weights")
    if view.weight_version != served.version and served.path is None:
        message = f"serves {view.weight_version!r}, and where the fleet's {served.version!r} is, nobody said"
        return MemberOutcome(view.member, False, message)
    update = Update(f"tend-{uuid.uuid4().hex}", served.path or "", served.version, Phase.ROLLING)
    return await updates.bring(endpoint, update, drain=False)
