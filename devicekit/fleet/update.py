"""New weights for the whole fleet at once, in two phases.

Every engine reads and checks the checkpoint; all are held; all write; all confirm version and checksum; all
generate again. What fails before the first one writes changes nothing anywhere. What fails later leaves engines
that do not have the new weights held, or takes the new weights back from those that do: as was asked.

Each step may be done twice, and the record says in which phase the update is: `resume` finishes what a killed
fleet process began.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace

from devicekit.contract.text import shown
from devicekit.fleet.agreement import notes, problems
from devicekit.fleet.endpoint import Endpoint
from devicekit.fleet.fleet import Fleet
from devicekit.fleet.outcomes import FleetReply, MemberOutcome, MemberView, still_waiting, summary
from devicekit.fleet.record import Phase, Served, Update
from devicekit.fleet.rolling import Rolling
from devicekit.fleet.steps import Steps

LONG = 3600.0  # seconds for an engine to read, write or drain
Claims = Mapping[str, MemberOutcome]


class FleetUpdate:
    """Updates of one fleet."""

    def __init__(
        self, fleet: Fleet, *, take_back: bool = False, timeout: float = LONG, at_once: int = 1
    ) -> None:
        """
        Args:
            take_back: where some engines fail to write, give the others their old weights again. Otherwise those
                that failed are kept from generating.
            timeout: seconds for an engine to read, to write, or to drain.
            at_once: engines that a rolling update takes out of service at a time.
        """
        self._fleet = fleet
        self._take_back = take_back
        self._steps = Steps(fleet, timeout=timeout)
        self._rolling = Rolling(fleet, self._steps, at_once=at_once)

    async def all_at_once(self, path: str, version: str, *, flush_cache: bool = True) -> FleetReply:
        """Update every engine; none serves the new weights before all have them.

        Raises:
            FleetBusy: another verb is under way, or another fleet steers.
            FleetError: who belongs to the fleet cannot be found out.
        """
        async with self._fleet.steering(f"the update to {shown(version)}") as claims:
            if (refusal := await self._refuse(version, claims)) is not None:
                return refusal
            update = self._begin(path, version, Phase.PREPARING, flush_cache, claims)
            return await self._prepare(update, claims)

    async def rolling(self, path: str, version: str, *, flush_cache: bool = True) -> FleetReply:
        """Update one engine after the other: read, drained, written, back. Two versions serve meanwhile.

        Raises:
            FleetBusy: another verb is under way, or another fleet steers.
            FleetError: who belongs to the fleet cannot be found out.
        """
        async with self._fleet.steering(f"the rolling update to {shown(version)}") as claims:
            if (refusal := await self._refuse(version, claims)) is not None:
                return refusal
            return await self._rolling.go_on(self._begin(path, version, Phase.ROLLING, flush_cache, claims))

    async def resume(self) -> FleetReply:
        """Finish the update that a fleet process left; where nothing was written yet, give it up.

        With ``take_back`` an update that can be finished is taken back instead.

        Raises:
            FleetBusy: another verb is under way, or another fleet steers.
            FleetError: who belongs to the fleet cannot be found out.
        """
        async with self._fleet.steering("resume") as claims:
            update = self._fleet.file.record.update
            if update is None:
                return FleetReply(True, "No update is under way.", weight_version=self._version())
            await self._fleet.survey(claims)
            if update.phase is Phase.PREPARING:
                return await self._give_up(
                    update, [], "It was given up: nothing had been written yet.", claims
                )
            if update.phase in (Phase.ROLLING, Phase.ROLLING_BACK):
                if self._take_back and update.phase is Phase.ROLLING:
                    return await self._rolling.back(update)
                return await self._rolling.go_on(update)
            if update.phase is Phase.TAKING_BACK or (self._take_back and update.phase is Phase.WRITING):
                return await self._return(self._enter(update, Phase.TAKING_BACK), [])
            return await self._write(update, claims)

    # -- Before anything is written ---------------------------------------------------------------------------

    def _begin(self, path: str, version: str, phase: Phase, flush_cache: bool, claims: Claims) -> Update:
        waiting = tuple(name for name, one in claims.items() if one.document.get("awaits_fleet") is True)
        update = Update(
            uuid.uuid4().hex, path, version, phase, flush_cache, take_back=self._take_back, waiting=waiting
        )
        self._fleet.file.save(update=update)
        return update

    async def _refuse(self, version: str, claims: Claims) -> FleetReply | None:
        record = self._fleet.file.record
        if not version:  # to engines that is none, and each makes up its own
            return FleetReply(False, "Nothing was changed. Give the new weights a name.", outcome="unchanged")
        if record.update is not None:
            message = f"The update to {shown(record.update.version)} is not finished: resume it first."
            return FleetReply(False, message, outcome="unchanged")
        if record.served is not None and record.served.version == version:
            message = (
                f"The fleet serves a version {shown(version)} already: give the new weights another name."
            )
            return FleetReply(False, message, outcome="unchanged")
        views = await self._fleet.survey(claims)
        outcomes = [
            found if claims[found.member].success else claims[found.member] for found in problems(views)
        ]
        if all(one.success for one in outcomes):
            if record.served is None:
                await self._learn(views)
            return None
        message = f"Nothing was changed. {summary('update', outcomes)}"
        return FleetReply(False, message, tuple(outcomes), "unchanged", self._version(), notes=notes(views))

    async def _learn(self, views: Sequence[MemberView]) -> None:
        """Record what all engines serve as the fleet's, so that the update can be taken back."""
        versions, paths = {one.weight_version for one in views}, {one.model_path for one in views}
        version = str(versions.pop())
        if versions or len(paths) > 1:
            return
        checksum, confirmed = await self._steps.confirm(self._fleet.endpoints, version)
        if checksum is not None and all(one.success for one in confirmed):
            self._fleet.file.save(served=Served(version, paths.pop(), checksum))

    async def _prepare(self, update: Update, claims: Claims) -> FleetReply:
        endpoints = self._fleet.endpoints
        outcomes = await self._steps.prepare(endpoints, update)
        if not all(one.success for one in outcomes):
            return await self._give_up(update, outcomes, summary("prepare", outcomes), claims)
        held = await self._steps.hold(endpoints, update)
        if not all(one.success for one in held):
            return await self._give_up(update, held, summary("hold", held), claims)
        return await self._write(self._enter(update, Phase.WRITING), claims)

    async def _give_up(
        self, update: Update, outcomes: Sequence[MemberOutcome], why: str, claims: Claims
    ) -> FleetReply:
        """Nothing was written anywhere: let every engine forget the update, and generate if it did before."""
        fleet, record = self._fleet, self._fleet.file.record
        await self._steps.discard(fleet.endpoints, update)
        joining = self._others({*record.held, *update.waiting})

        async def join(endpoint: Endpoint) -> None:
            claimed = claims.get(endpoint.name)
            own = "" if claimed is None else str(claimed.document.get("weight_version"))
            await self._steps.join([endpoint], own if record.served is None else record.served.version)

        await asyncio.gather(*(join(one) for one in joining))
        views = await asyncio.gather(*(fleet.view(one) for one in joining))
        silent = [one.member for one in views if one.awaits_fleet is not False]
        fleet.file.save(update=None)
        message = f"Nothing was changed. {why}"
        if silent:
            message += f" {_named(silent)} did not say that they generate on: devicekit fleet tend has them."
        return FleetReply(False, message, tuple(outcomes), "unchanged", self._version(), record.held)

    # -- Writing ----------------------------------------------------------------------------------------------

    async def _write(self, update: Update, claims: Claims) -> FleetReply:
        """Let every engine write what it prepared, and find out which did. None generates meanwhile."""
        fleet = self._fleet
        await self._steps.hold(fleet.endpoints, update)  # who was started anew meanwhile, or is not held yet
        outcomes = await self._steps.commit_all(update)
        if update.phase is Phase.WRITING and all(_unchanged(one) for one in outcomes):
            return await self._give_up(update, outcomes, summary("write", outcomes), claims)
        wrote = [one for one, outcome in zip(fleet.endpoints, outcomes, strict=True) if outcome.success]
        checksum, confirmed = await self._steps.confirm(wrote, update.version, update.checksum or None)
        found = {one.member: one for one in [*outcomes, *confirmed]}  # the later word counts
        failed = [one for one in found.values() if not one.success]
        taking_back = (update.take_back or self._take_back) and update.phase is Phase.WRITING
        if failed and (taking_back or checksum is None):
            return await self._return(self._enter(update, Phase.TAKING_BACK), list(found.values()))
        held = tuple(one.member for one in failed)
        served = Served(update.version, update.path, str(checksum))
        update = replace(update, phase=Phase.CONTINUING, checksum=str(checksum))
        fleet.file.save(served=served, held=held, update=update)
        return await self._continue(update, found)

    async def _continue(self, update: Update, found: dict[str, MemberOutcome]) -> FleetReply:
        held = self._fleet.file.record.held
        joined = await self._steps.join(self._others(held), update.version)
        views = await self._fleet.look()
        joined = still_waiting(joined, views)
        found = {**found, **{one.member: one for one in joined if not one.success}}
        held = (*held, *(one.member for one in joined if not one.success))
        self._fleet.file.save(update=None, held=held)
        message = summary("update", list(found.values()))
        if held:
            message += (
                f" {_named(held)} will not generate until they have these weights (devicekit fleet tend)."
            )
            if astray := [one.member for one in views if one.member in held and one.serving]:
                message += f" {_named(astray)} SAY THAT THEY GENERATE NONETHELESS: take them out of traffic."
        outcome = "partial" if held else "updated"
        return FleetReply(
            not held, message, tuple(found.values()), outcome, update.version, held, notes(views)
        )

    async def _return(self, update: Update, outcomes: list[MemberOutcome]) -> FleetReply:
        """Give every engine the weights that the fleet had before."""
        fleet, before = self._fleet, self._fleet.file.record.served
        if before is None or before.path is None:
            held = fleet.file.record.members
            await self._steps.hold(fleet.endpoints, update)
            fleet.file.save(update=None, held=held)
            message = (
                f"{summary('update', outcomes)} Where the old weights are is unknown: no engine generates."
            )
            return FleetReply(False, message, tuple(outcomes), "partial", None, held)
        again = Update(f"{update.id}-back", before.path, before.version, update.phase, update.flush_cache)
        await self._steps.hold(fleet.endpoints, update)
        back = await self._steps.commit_all(again)
        wrote = [one for one, outcome in zip(fleet.endpoints, back, strict=True) if outcome.success]
        _, confirmed = await self._steps.confirm(wrote, before.version, before.checksum)
        found = {one.member: one for one in [*back, *confirmed]}
        held = tuple(one.member for one in found.values() if not one.success)
        fleet.file.save(held=held)
        joined = await self._steps.join(self._others(held), before.version)
        held = (*held, *(one.member for one in joined if not one.success))
        fleet.file.save(update=None, held=held)
        message = f"{summary('update', outcomes)} The weights {shown(before.version)} are served again."
        if held:
            message += f" Not by {_named(held)}, which do not generate."
        return FleetReply(
            False, message, tuple(outcomes), "unchanged" if not held else "partial", before.version, held
        )

    def _others(self, held: Sequence[str] | set[str]) -> list[Endpoint]:
        return [one for one in self._fleet.endpoints if one.name not in held]

    def _enter(self, update: Update, phase: Phase) -> Update:
        update = replace(update, phase=phase)
        self._fleet.file.save(update=update)
        return update

    def _version(self) -> str | None:
        served = self._fleet.file.record.served
        return None if served is None else served.version


def _unchanged(outcome: MemberOutcome) -> bool:
    """Whether an engine certainly wrote nothing: it said so, or refused before it could."""
    said = outcome.document.get("outcome", "unchanged")
    return not outcome.success and outcome.status is not None and said == "unchanged"


def _named(members: Sequence[str]) -> str:
    return ", ".join(members[:5]) + (f" and {len(members) - 5} more" if len(members) > 5 else "")
