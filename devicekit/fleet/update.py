"""New weights for the whole fleet: all at once in two phases, or one engine after the other.

All at once: every engine reads and checks the checkpoint; all are paused; all write; all confirm version and
checksum; all continue. What fails before the first one writes changes nothing anywhere. What fails afterwards
leaves engines that do not have the new weights paused, or takes the new weights back from those that do: as was
asked.

Each step may be done twice, and the record says in which phase the update is: `resume` finishes what a killed
fleet process began.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

from devicekit.fleet.endpoint import Endpoint
from devicekit.fleet.fleet import Fleet
from devicekit.fleet.outcomes import FleetReply, MemberOutcome, MemberView, summary
from devicekit.fleet.record import Phase, Served, Update

LONG = 3600.0  # seconds for an engine to read, write or drain


class FleetUpdate:
    """Updates of one fleet."""

    def __init__(self, fleet: Fleet, *, take_back: bool = False, timeout: float = LONG) -> None:
        """
        Args:
            take_back: where some engines fail to write, give the others their old weights again. Otherwise those
                that failed are kept from generating.
            timeout: seconds for an engine to read, to write, or to drain.
        """
        self._fleet = fleet
        self._take_back = take_back
        self._timeout = timeout

    async def all_at_once(self, path: str, version: str, *, flush_cache: bool = True) -> FleetReply:
        """Update every engine; none serves the new weights before all have them.

        Raises:
            FleetBusy: another verb is under way.
        """
        async with self._fleet.steering(f"the update to {version!r}"):
            if (refusal := await self._refuse(version)) is not None:
                return refusal
            return await self._prepare(self._begin(path, version, Phase.PREPARING, flush_cache))

    async def rolling(self, path: str, version: str, *, flush_cache: bool = True) -> FleetReply:
        """Update one engine after the other: drained, updated, back in service. Two versions serve meanwhile.

        Raises:
            FleetBusy: another verb is under way.
        """
        async with self._fleet.steering(f"the rolling update to {version!r}"):
            if (refusal := await self._refuse(version)) is not None:
                return refusal
            return await self._roll(self._begin(path, version, Phase.ROLLING, flush_cache))

    async def resume(self) -> FleetReply:
        """Finish the update that a fleet process left; where nothing was written yet, give it up.

        Raises:
            FleetBusy: another verb is under way.
        """
        async with self._fleet.steering("resume"):
            update = self._fleet.file.record.update
            if update is None:
                return FleetReply(True, "No update is under way.")
            if update.phase is Phase.PREPARING:
                return await self._give_up(update, [], "It was given up: nothing had been written yet.")
            if update.phase is Phase.ROLLING:
                return await self._roll(update)
            if update.phase is Phase.TAKING_BACK:
                return await self._return(update, [])
            return await self._write(update)

    # -- Before anything is written ---------------------------------------------------------------------------

    def _begin(self, path: str, version: str, phase: Phase, flush_cache: bool) -> Update:
        update = Update(uuid.uuid4().hex, path, version, phase, flush_cache)
        self._fleet.file.save(update=update)
        return update

    async def _refuse(self, version: str) -> FleetReply | None:
        record = self._fleet.file.record
        if record.update is not None:
            message = f"The update to {record.update.version!r} is not finished: resume it first."
            return FleetReply(False, message, outcome="unchanged")
        if record.served is not None and record.served.version == version:
            message = f"The fleet serves a version {version!r} already: give the new weights another name."
            return FleetReply(False, message, outcome="unchanged")
        outcomes = _problems(await self._fleet.look())
        if all(one.success for one in outcomes):
            return None
        message = f"Nothing was changed. {summary('update', outcomes)}"
        return FleetReply(False, message, tuple(outcomes), "unchanged", self._version())

    async def _prepare(self, update: Update) -> FleetReply:
        body = {"update_id": update.id, "model_path": update.path}
        outcomes = await self._fleet.send("/prepare_weight_update", body, timeout=self._timeout)
        if not all(one.success for one in outcomes):
            return await self._give_up(update, outcomes, summary("prepare", outcomes))
        paused = await self._pause(self._fleet.endpoints, update)
        if not all(one.success for one in paused):
            return await self._give_up(update, paused, summary("pause", paused))
        update = self._enter(update, Phase.WRITING)
        return await self._write(update)

    async def _give_up(self, update: Update, outcomes: Sequence[MemberOutcome], why: str) -> FleetReply:
        """Nothing was written anywhere: let everybody forget it, and generate on."""
        await self._fleet.send("/discard_weight_update", {"update_id": update.id})
        held = self._fleet.file.record.held
        await self._fleet.send("/continue_generation", {}, self._others(held))
        self._fleet.file.save(update=None)
        return FleetReply(
            False, f"Nothing was changed. {why}", tuple(outcomes), "unchanged", self._version(), held
        )

    # -- Writing ----------------------------------------------------------------------------------------------

    async def _write(self, update: Update) -> FleetReply:
        """Have every engine write what it prepared, and find out which did. All are paused."""
        fleet = self._fleet
        await self._pause(fleet.endpoints, update)  # who was restarted meanwhile is not paused any more
        outcomes = await self._commit_all(update)
        if all(_unchanged(one) for one in outcomes):
            return await self._give_up(update, outcomes, summary("write", outcomes))
        wrote = [one for one, outcome in zip(fleet.endpoints, outcomes, strict=True) if outcome.success]
        checksum, confirmed = await fleet.confirm(wrote, update.version)
        found = {one.member: one for one in [*outcomes, *confirmed]}  # the later word counts
        failed = [one for one in found.values() if not one.success]
        if failed and (self._take_back or checksum is None):
            return await self._return(self._enter(update, Phase.TAKING_BACK), list(found.values()))
        held = tuple(one.member for one in failed)
        served = Served(update.version, update.path, str(checksum))
        fleet.file.save(served=served, held=held, update=self._at(update, Phase.CONTINUING))
        return await self._continue(update, list(found.values()), held)

    async def _continue(
        self, update: Update, outcomes: list[MemberOutcome], held: tuple[str, ...]
    ) -> FleetReply:
        admitted = await self._admit(self._others(held), update.version)
        silent = [one for one in admitted if not one.success]
        outcomes = [*{one.member: one for one in [*outcomes, *silent]}.values()]
        held = (*held, *(one.member for one in silent))
        self._fleet.file.save(update=None, held=held)
        message = summary("update", outcomes)
        if held:
            message += (
                f" {', '.join(held)} will not generate until they have these weights (devicekit fleet tend)."
            )
        return FleetReply(
            not held, message, tuple(outcomes), "partial" if held else "updated", update.version, held
        )

    async def _return(self, update: Update, outcomes: list[MemberOutcome]) -> FleetReply:
        """Give every engine the weights that the fleet had before."""
        fleet, before = self._fleet, self._fleet.file.record.served
        if before is None or before.path is None:
            held = fleet.file.record.members
            fleet.file.save(update=None, held=held)
            message = (
                f"{summary('update', outcomes)} Where the old weights are is unknown: no engine generates."
            )
            return FleetReply(False, message, tuple(outcomes), "partial", None, held)
        again = Update(f"{update.id}-back", before.path, before.version, update.phase, update.flush_cache)
        await fleet.send("/discard_weight_update", {"update_id": update.id})
        back = await self._commit_all(again)
        wrote = [one for one, outcome in zip(fleet.endpoints, back, strict=True) if outcome.success]
        _, confirmed = await fleet.confirm(wrote, before.version)
        found = {one.member: one for one in [*back, *confirmed]}
        held = tuple(one.member for one in found.values() if not one.success)
        fleet.file.save(held=held)
        admitted = await self._admit(self._others(held), before.version)
        held = (*held, *(one.member for one in admitted if not one.success))
        fleet.file.save(update=None, held=held)
        message = f"{summary('update', outcomes)} The weights {before.version!r} are served again."
        if held:
            message += f" Not by {', '.join(held)}, which do not generate."
        return FleetReply(
            False, message, tuple(outcomes), "unchanged" if not held else "partial", before.version, held
        )

    # -- One engine -------------------------------------------------------------------------------------------

    async def _roll(self, update: Update) -> FleetReply:
        fleet, outcomes = self._fleet, list[MemberOutcome]()
        for endpoint in fleet.endpoints:
            outcome = await self.bring(endpoint, update)
            outcomes.append(outcome)
            if not outcome.success:
                fleet.file.save(held=tuple(dict.fromkeys((*fleet.file.record.held, endpoint.name))))
                left = len(fleet.endpoints) - len(outcomes)
                message = f"{summary('rolling update', outcomes)} {left} were not reached: resume to go on."
                return FleetReply(False, message, tuple(outcomes), "partial", None, fleet.file.record.held)
        checksum, outcomes = await fleet.confirm(fleet.endpoints, update.version)
        held = tuple(one.member for one in outcomes if not one.success)
        if held or checksum is None:
            fleet.file.save(held=held)
            return FleetReply(False, summary("confirm", outcomes), tuple(outcomes), "partial", None, held)
        fleet.file.save(served=Served(update.version, update.path, checksum), update=None, held=())
        return FleetReply(
            True, summary("rolling update", outcomes), tuple(outcomes), "updated", update.version
        )

    async def bring(self, endpoint: Endpoint, update: Update, *, drain: bool = True) -> MemberOutcome:
        """Take one engine out of service, give it these weights, and have it generate again.

        Args:
            drain: let what runs there come to its end; otherwise it stops at once, and goes on with these weights.
        """
        fleet = self._fleet
        seen = await fleet.call(endpoint, "/server_info", None)
        if not seen.success:
            return seen
        if seen.document.get("weight_version") != update.version:
            if drain and not seen.document.get("awaits_fleet"):
                body = {"timeout": self._timeout}
                drained = await fleet.call(endpoint, "/drain", body, timeout=self._timeout + 10)
                if not drained.success:
                    await fleet.call(endpoint, "/continue_generation", {})
                    return drained
            outcome = await self._commit(endpoint, update)
            if not outcome.success:
                return outcome
        _, [confirmed] = await fleet.confirm([endpoint], update.version)
        if not confirmed.success:
            await self._pause([endpoint], update)
            return confirmed
        return (await self._admit([endpoint], update.version))[0]

    async def _commit_all(self, update: Update) -> list[MemberOutcome]:
        """Commit on every engine; who cannot, having forgotten what it prepared, prepares once more."""
        fleet = self._fleet
        first = await fleet.send("/commit_weight_update", _commit(update), timeout=self._timeout)
        again = [endpoint for endpoint, one in zip(fleet.endpoints, first, strict=True) if not one.success]
        later = await asyncio.gather(*(self._commit(endpoint, update) for endpoint in again))
        found = {one.member: one for one in [*first, *later]}
        return [found[endpoint.name] for endpoint in fleet.endpoints]

    async def _commit(self, endpoint: Endpoint, update: Update) -> MemberOutcome:
        """Prepare, in case the engine has forgotten that it did, and commit. A pause that is there stays."""
        fleet = self._fleet
        [paused] = await self._pause([endpoint], update)
        if not paused.success:
            return paused
        seen = await fleet.call(endpoint, "/server_info", None)
        stale = seen.document.get("prepared_update")
        if (
            stale is not None and stale != update.id
        ):  # of an update that this engine took no part in finishing
            await fleet.call(endpoint, "/discard_weight_update", {"update_id": stale})
        body = {"update_id": update.id, "model_path": update.path}
        prepared = await fleet.call(endpoint, "/prepare_weight_update", body, timeout=self._timeout)
        if not prepared.success:
            return prepared
        return await fleet.call(endpoint, "/commit_weight_update", _commit(update), timeout=self._timeout)

    async def _pause(self, endpoints: Sequence[Endpoint], update: Update) -> list[MemberOutcome]:
        """Have them generate nothing. Retracted requests hold no cache, so that it can be flushed."""
        mode = "retract" if update.flush_cache else "in_place"
        return await self._fleet.send("/pause_generation", {"mode": mode}, endpoints, timeout=self._timeout)

    async def _admit(self, endpoints: Sequence[Endpoint], version: str) -> list[MemberOutcome]:
        """Have them generate; each one's outcome."""
        fleet = self._fleet
        first = await fleet.send("/join_fleet", {"weight_version": version}, endpoints)
        joined = [endpoint for endpoint, one in zip(endpoints, first, strict=True) if one.success]
        later = await fleet.send("/continue_generation", {}, joined)
        found = {one.member: one for one in [*first, *later]}
        return [found[endpoint.name] for endpoint in endpoints]

    def _others(self, held: Sequence[str]) -> list[Endpoint]:
        return [one for one in self._fleet.endpoints if one.name not in held]

    def _enter(self, update: Update, phase: Phase) -> Update:
        update = self._at(update, phase)
        self._fleet.file.save(update=update)
        return update

    @staticmethod
    def _at(update: Update, phase: Phase) -> Update:
        return Update(update.id, update.path, update.version, phase, update.flush_cache)

    def _version(self) -> str | None:
        served = self._fleet.file.record.served
        return None if served is None else served.version


def _commit(update: Update) -> dict[str, object]:
    return {"update_id": update.id, "weight_version": update.version, "flush_cache": update.flush_cache}


def _unchanged(outcome: MemberOutcome) -> bool:
    """Whether an engine certainly wrote nothing: it said so, or refused before it could."""
    said = outcome.document.get("outcome", "unchanged")
    return not outcome.success and outcome.status is not None and said == "unchanged"


def _problems(views: Sequence[MemberView]) -> list[MemberOutcome]:
    """What keeps engines from being updated as one."""
    found: list[MemberOutcome] = []
    instances: dict[str, str] = {}
    kinds = [one.kind for one in views if one.reachable]
    common = max(kinds, key=kinds.count) if kinds else ()
    for one in views:
        problem = ""
        twin = instances.get(one.instance) if one.instance is not None else None
        if not one.reachable:
            problem = one.message
        elif twin is not None:
            problem = f"is the same engine as {twin}"
        elif one.kind != common:
            odd = ", ".join(sorted(set(one.kind) - set(common)))
            problem = f"serves another model than the others: {odd}"
        elif one.status in ("failed", "stalled"):
            problem = f"is {one.status}"
        if one.instance is not None:
            instances.setdefault(one.instance, one.member)
        found.append(MemberOutcome(one.member, not problem, problem))
    return found
