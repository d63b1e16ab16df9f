"""The steps of an update, on some engines or on one. Each may be repeated on engines that are claimed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from devicekit.fleet.endpoint import Endpoint
from devicekit.fleet.fleet import CONFLICT, Fleet
from devicekit.fleet.outcomes import MemberOutcome, MemberView
from devicekit.fleet.record import Update
from devicekit.ranges import finite


@dataclass(frozen=True, slots=True)
class Brought:
    """The outcome of bringing weights to one engine."""

    outcome: MemberOutcome
    checksum: str | None = None  # that the engine has confirmed; None: it has not
    serving_old: bool = False  # it failed, and generates on with the weights that it had


class Steps:
    """What an update says to engines, and in which words."""

    def __init__(self, fleet: Fleet, *, timeout: float) -> None:
        """``timeout``: seconds for an engine to read, to write, or to let requests end."""
        finite("timeout", timeout, above=0)
        self._fleet = fleet
        self._timeout = timeout

    async def prepare(
        self, endpoints: Sequence[Endpoint], update: Update, peer: str | None = None
    ) -> list[MemberOutcome]:
        """Let engines read and check the checkpoint, or the weights of a peer. Nothing is written."""
        body: dict[str, object] = {"update_id": update.id}
        if peer is None:
            body["model_path"] = update.path
        else:
            body |= {"peer": peer, "weight_version": update.version, "checksum": update.checksum}
        return await self._say("/prepare_weight_update", body, endpoints, self._timeout)

    async def discard(self, endpoints: Sequence[Endpoint], update: Update) -> list[MemberOutcome]:
        """Let engines forget what they prepared."""
        return await self._say("/discard_weight_update", {"update_id": update.id}, endpoints)

    async def hold(
        self, endpoints: Sequence[Endpoint], update: Update, *, finish: bool = False
    ) -> list[MemberOutcome]:
        """Let engines generate nothing. Retracted requests hold no cache, so that it can be flushed.

        Args:
            finish: once what runs has come to its end.
        """
        if finish:
            body: dict[str, object] = {"mode": "finish", "timeout": self._timeout}
            return await self._say("/hold_for_fleet", body, endpoints, self._timeout + 10)
        mode = "retract" if update.flush_cache else "in_place"
        return await self._say("/hold_for_fleet", {"mode": mode}, endpoints, self._timeout)

    async def join(self, endpoints: Sequence[Endpoint], version: str) -> list[MemberOutcome]:
        """Let engines generate, if they have this version."""
        return await self._say("/join_fleet", {"weight_version": version}, endpoints)

    async def commit_all(self, update: Update) -> list[MemberOutcome]:
        """Commit on every engine. One that has forgotten what it prepared prepares once more."""
        endpoints = self._fleet.endpoints
        first = await self._commit(endpoints, update)
        again = [endpoint for endpoint, one in zip(endpoints, first, strict=True) if not one.success]
        later = await asyncio.gather(*(self.commit_one(endpoint, update) for endpoint in again))
        found = {one.member: one for one in [*first, *later]}
        return [found[endpoint.name] for endpoint in endpoints]

    async def commit_one(self, endpoint: Endpoint, update: Update, peer: str | None = None) -> MemberOutcome:
        """Claim, hold, prepare and commit: repeats whatever the engine has forgotten or never heard."""
        claimed = await self._fleet.claim(endpoint)
        if not claimed.success:
            return claimed
        [outcome] = await self.hold([endpoint], update)
        if outcome.success:
            [outcome] = await self.prepare([endpoint], update, peer)
        if outcome.success:
            [outcome] = await self._commit([endpoint], update)
        if outcome.status == CONFLICT and not outcome.success:
            await self._fleet.claim(endpoint)  # finds out whether another process steers: then nobody joins
        return outcome

    async def confirm(
        self, endpoints: Sequence[Endpoint], version: str, expected: str | None = None
    ) -> tuple[str | None, list[MemberOutcome]]:
        """Whether they have the same weights of this version, or those of the expected checksum."""
        return await self._fleet.confirm(endpoints, version, expected=expected, timeout=self._timeout)

    async def bring(
        self,
        endpoint: Endpoint,
        update: Update,
        *,
        expected: str | None = None,
        finish: bool = True,
        peer: str | None = None,
    ) -> Brought:
        """Give one engine these weights, and let it generate.

        Args:
            expected: the checksum that it must have in the end, where it is known.
            finish: let what runs there come to its end; otherwise the engine stops at once.
            peer: the engine whose weights it reads, which must have the checksum of the update; default: it reads
                the update's path.
        """
        fleet = self._fleet
        claimed = await fleet.claim(endpoint)
        if not claimed.success:
            return Brought(claimed, serving_old=(await fleet.view(endpoint)).awaits_fleet is False)
        view = await fleet.view(endpoint)
        if view.weight_version == update.version:
            checksum, [confirmed] = await self.confirm([endpoint], update.version, expected)
            if confirmed.success:
                return Brought((await self.join([endpoint], update.version))[0], checksum)
            finish = False  # it has other weights than its name for them says
        outcome = await self._exchange(endpoint, update, finish=finish and view.serving, peer=peer)
        if not outcome.success:
            return Brought(outcome, serving_old=finish and await self._serves_old(endpoint, view))
        checksum, [confirmed] = await self.confirm([endpoint], update.version, expected)
        if not confirmed.success:
            return Brought(confirmed)
        return Brought((await self.join([endpoint], update.version))[0], checksum)

    async def _exchange(
        self, endpoint: Endpoint, update: Update, *, finish: bool, peer: str | None
    ) -> MemberOutcome:
        """Read, then stop, then write. An engine that need not finish its requests stops first."""
        if not finish:
            return await self.commit_one(endpoint, update, peer)
        [outcome] = await self.prepare([endpoint], update, peer)
        if outcome.success:
            [outcome] = await self.hold([endpoint], update, finish=True)
        if not outcome.success:
            await self.discard([endpoint], update)
            return outcome
        return (await self._commit([endpoint], update))[0]

    async def _serves_old(self, endpoint: Endpoint, before: MemberView) -> bool:
        """Whether an engine in which nothing was written generates as before; lets it do so."""
        version = before.weight_version
        if before.awaits_fleet or version is None:
            return False
        view = await self._fleet.view(endpoint)
        if view.awaits_fleet and view.weight_version == version and view.instance == before.instance:
            await self._fleet.claim(endpoint)  # what was said before, and may still arrive, is refused then
            await self.join([endpoint], version)
            view = await self._fleet.view(endpoint)
        return view.awaits_fleet is False and view.weight_version == version

    async def _commit(self, endpoints: Sequence[Endpoint], update: Update) -> list[MemberOutcome]:
        body = {
            "update_id": update.id,
            "weight_version": update.version,
            "flush_cache": update.flush_cache,
        }
        return await self._say("/commit_weight_update", body, endpoints, self._timeout)

    async def _say(
        self,
        path: str,
        body: dict[str, object],
        endpoints: Sequence[Endpoint],
        timeout: float | None = None,
    ) -> list[MemberOutcome]:
        return await self._fleet.send(path, body, endpoints, timeout=timeout, leased=True)
