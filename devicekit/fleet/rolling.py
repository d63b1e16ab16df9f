"""New weights for one engine after the other, while the others serve."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from devicekit.contract.text import shown
from devicekit.fleet.agreement import notes
from devicekit.fleet.fleet import Fleet
from devicekit.fleet.outcomes import FleetReply, MemberOutcome, still_waiting, summary
from devicekit.fleet.record import Phase, Served, Update
from devicekit.fleet.steps import Brought, Steps
from devicekit.ranges import whole


class Rolling:
    """Rolling updates of one fleet; the record says how far they are."""

    def __init__(self, fleet: Fleet, steps: Steps, *, at_once: int = 1) -> None:
        """``at_once``: engines that are out of service at a time."""
        self._fleet = fleet
        self._steps = steps
        whole("at_once", at_once, least=1)
        self._at_once = at_once

    async def go_on(self, update: Update) -> FleetReply:
        """Bring the weights to each engine that lacks them. Stops at the first failure."""
        fleet, found = self._fleet, dict[str, MemberOutcome]()
        for start in range(0, len(fleet.endpoints), self._at_once):
            group = fleet.endpoints[start : start + self._at_once]
            bringing = (self._steps.bring(one, update, expected=update.checksum or None) for one in group)
            brought = await asyncio.gather(*bringing)
            found |= {one.outcome.member: one.outcome for one in brought}
            if (update := self._noted(update, brought)).checksum:
                fleet.file.save(update=update)
            if failed := [one for one in brought if not one.outcome.success]:
                return await self._stopped(update, failed, list(found.values()))
        checksum, outcomes = await self._steps.confirm(
            fleet.endpoints, update.version, update.checksum or None
        )
        views = await fleet.look()
        outcomes = still_waiting(outcomes, views)
        held = tuple(one.member for one in outcomes if not one.success)
        if held or checksum is None:
            fleet.file.save(held=held)
            await self._steps.hold([one for one in fleet.endpoints if one.name in held], update)
            return FleetReply(False, summary("confirm", outcomes), tuple(outcomes), "partial", None, held)
        fleet.file.save(served=Served(update.version, update.path, checksum), update=None, held=())
        back = update.phase is Phase.ROLLING_BACK
        message = (
            f"The weights {shown(update.version)} are served again."
            if back
            else summary("rolling update", outcomes)
        )
        outcome = "unchanged" if back else "updated"
        return FleetReply(not back, message, tuple(outcomes), outcome, update.version, notes=notes(views))

    async def back(self, update: Update) -> FleetReply:
        """Bring the former weights back to each engine that has lost them."""
        fleet, before = self._fleet, self._fleet.file.record.served
        if before is None or before.path is None:
            return FleetReply(
                False, "Where the old weights are is unknown: resume without taking back.", outcome="partial"
            )
        again = Update(
            f"{update.id}-back",
            before.path,
            before.version,
            Phase.ROLLING_BACK,
            update.flush_cache,
            checksum=before.checksum,
        )
        fleet.file.save(update=again)
        return await self.go_on(again)

    @staticmethod
    def _noted(update: Update, brought: Sequence[Brought]) -> Update:
        """The update with the checksum of the new weights, once an engine has confirmed one."""
        known = [one.checksum for one in brought if one.checksum]
        return replace(update, checksum=known[0]) if known and not update.checksum else update

    async def _stopped(
        self, update: Update, failed: Sequence[Brought], found: list[MemberOutcome]
    ) -> FleetReply:
        fleet, record = self._fleet, self._fleet.file.record
        message = summary("rolling update", found)
        serving = [one.outcome.member for one in failed if one.serving_old]
        lost = [one.outcome.member for one in failed if not one.serving_old]
        if not lost and not update.checksum and update.phase is Phase.ROLLING:
            fleet.file.save(update=None)
            served = None if record.served is None else record.served.version
            return FleetReply(
                False, f"Nothing was changed. {message}", tuple(found), "unchanged", served, record.held
            )
        if serving:
            message += f" {', '.join(serving)} did not change, and serve on."
        if lost:
            fleet.file.save(held=tuple(dict.fromkeys((*record.held, *lost))))
            message += f" {', '.join(lost)} do not generate."
        left = len(fleet.endpoints) - len(found)
        message += f" {left} were not reached: resume to go on, or resume with --take-back to go back."
        if update.take_back and update.phase is Phase.ROLLING:
            return await self._take_back(update, found, message)
        return FleetReply(False, message, tuple(found), "partial", None, fleet.file.record.held)

    async def _take_back(self, update: Update, found: list[MemberOutcome], message: str) -> FleetReply:
        back = await self.back(update)
        return replace(back, success=False, message=f"{message} {back.message}", outcomes=tuple(found))
