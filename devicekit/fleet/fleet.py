"""The fleet itself: which engines belong to it, and verbs over all of them with an outcome for each."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from devicekit.contract.errors import ConfigurationError
from devicekit.contract.text import counted, shown
from devicekit.fleet.agreement import problems
from devicekit.fleet.endpoint import Answer, Endpoint, Unreachable
from devicekit.fleet.errors import FleetBusy
from devicekit.fleet.members import MemberSource
from devicekit.fleet.outcomes import FleetReply, MemberOutcome, MemberView, summary
from devicekit.fleet.record import RecordFile, Served

CONFLICT = 409
"""HTTP: somebody else steers, or the engine is not as this takes it to be."""

_LONGEST_LEASE = 1000  # characters, as engines take them
_AT_ONCE = 512  # calls under way
_LONG = 30.0  # seconds; a call that may take more is looked after meanwhile
_PARTING = 5.0  # seconds: who does not hear that others may steer finds out when they do
_SILENT = 3  # looks in a row without an answer, after which an engine is not waited for
BACKGROUND = "tend, by itself"
"""A verb that nobody asked for: whoever comes meanwhile waits for its end."""

Connect = Callable[[str], Endpoint]


class Fleet:
    """Engines, and the file that says what they must have.

    One verb at a time changes anything: another one meanwhile raises `FleetBusy`. Before it does, it claims every
    engine, so that no other fleet changes anything either.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        file: RecordFile,
        *,
        source: MemberSource | None = None,
        connect: Connect | None = None,
        take_over: bool = False,
        keep_claims: bool = False,
    ) -> None:
        """
        Args:
            endpoints: one for each member that the file names.
            source: says before each verb who belongs to the fleet; none: those that the file names.
            connect: makes the endpoint of a member that the source names.
            take_over: claim engines also from another fleet.
            keep_claims: keep them between verbs, until `close`.

        Raises:
            ConfigurationError: the endpoints are not the members of the file.
        """
        names = [one.name for one in endpoints]
        if source is None and sorted(names) != sorted(file.record.members):
            raise ConfigurationError(f"The fleet of {file.path} is {file.record.members}, not {names}.")
        self.endpoints = tuple(endpoints)
        self.file = file
        self.take_over = take_over
        self._source, self._connect = source, connect
        self._keep = keep_claims
        self._limit = asyncio.Semaphore(_AT_ONCE)
        self._busy: str | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._leases: dict[str, str] = {}
        self._holder = uuid.uuid4().hex
        self._overtaken = ""  # why this verb may change nothing more
        self._label = f"The fleet of {file.path} (process {os.getpid()} on {socket.gethostname()})"

    @asynccontextmanager
    async def steering(self, verb: str) -> AsyncIterator[Mapping[str, MemberOutcome]]:
        """Be the only fleet that changes anything. Gives each engine's answer to the claim.

        Raises:
            FleetBusy: another verb of this fleet is under way, or another fleet steers an engine.
            UnknownMembers: who belongs to the fleet cannot be found out.
        """
        while self._busy == BACKGROUND and verb != BACKGROUND:
            await self._idle.wait()
        if self._busy is not None:
            raise FleetBusy(f"The fleet is busy: {self._busy} is under way.")
        self._busy, self._overtaken = verb, ""
        self._idle.clear()
        try:
            await self._refresh(verb)
            claims = {one.member: one for one in await self._claim_all()}
            try:
                yield claims
            finally:
                if not self._keep:
                    await self.end_claims()
        finally:
            self._busy = None
            self._idle.set()

    @property
    def busy(self) -> str | None:
        """The verb that is under way."""
        return self._busy

    async def refresh(self) -> None:
        """Ask the source which engines belong to the fleet. While a verb is under way they stay the same.

        Raises:
            UnknownMembers: it does not say.
        """
        await self._refresh(None)

    async def _refresh(self, verb: str | None) -> None:
        if self._source is None or self._connect is None or self._busy != verb:
            return
        names = await self._source.members()
        if self._busy != verb:
            return
        known = {one.name: one for one in self.endpoints}
        if names != self.file.record.members:
            held = tuple(one for one in self.file.record.held if one in names)
            self.file.save(members=names, held=held)
        self.endpoints = tuple(known.get(name) or self._connect(name) for name in names)
        for name in [name for name in known if name not in names]:
            if lease := self._leases.pop(name, None):
                await self.call(known[name], "/end_fleet_claim", {"lease": lease})
            await known[name].close()

    async def close(self) -> None:
        """Let others steer, and end the connections."""
        await self.end_claims()
        for one in self.endpoints:
            await one.close()

    # -- Claims -----------------------------------------------------------------------------------------------

    async def claim(self, endpoint: Endpoint) -> MemberOutcome:
        """Claim an engine for the verb under way. Fails if another process has steered one since the verb began.

        In that case the verb's work is out of date, and it changes nothing more.
        """
        if not self._overtaken:
            outcome = await self._claim(endpoint, again=True)
            if outcome.status != CONFLICT:
                return outcome
            self._overtaken = f"{endpoint.name}: {outcome.message}"
        return MemberOutcome(endpoint.name, False, self._overtaken, CONFLICT)

    async def _claim(self, endpoint: Endpoint, *, again: bool) -> MemberOutcome:
        body = {
            "fleet": self.file.record.id,
            "steered_by": self._label,
            "take_over": self.take_over,
            "holder": self._holder,
            "again": again,
        }
        outcome = await self.call(endpoint, "/claim_for_fleet", body)
        lease = outcome.document.get("lease")
        if outcome.success and isinstance(lease, str) and 0 < len(lease) <= _LONGEST_LEASE:
            self._leases[endpoint.name] = lease
        elif outcome.success:
            return MemberOutcome(endpoint.name, False, "answered a claim without a lease", outcome.status)
        return outcome

    async def _claim_all(self) -> list[MemberOutcome]:
        # The first alone: of two fleets that come at once, one has it, and the other has nothing then.
        ordered = sorted(self.endpoints, key=lambda one: one.name)
        outcomes: list[MemberOutcome] = []
        for first, rest in ((True, ordered[:1]), (False, ordered[1:])):
            outcomes += await asyncio.gather(*(self._claim(one, again=False) for one in rest))
            taken = [one for one in outcomes if one.status == CONFLICT]
            if taken:
                if not first:
                    await self.end_claims()
                raise FleetBusy(f"{taken[0].member}: {taken[0].message}")
        found = {one.member: one for one in outcomes}
        return [found[one.name] for one in self.endpoints]

    async def end_claims(self) -> None:
        """Let others steer."""
        leases, self._leases = self._leases, {}
        ending = (
            self.call(one, "/end_fleet_claim", {"lease": leases[one.name]}, timeout=_PARTING)
            for one in self.endpoints
            if one.name in leases
        )
        await asyncio.gather(*ending)

    # -- Asking -----------------------------------------------------------------------------------------------

    async def look(self) -> list[MemberView]:
        """What every engine says of itself. Changes nothing."""
        return list(await asyncio.gather(*(self.view(one) for one in self.endpoints)))

    async def survey(self, claims: Mapping[str, MemberOutcome]) -> list[MemberView]:
        """As `look`, with all engines claimed at one moment, so that a later fleet comes after all of them.

        Raises:
            FleetBusy: another fleet has steered one while the others were claimed.
        """
        views = await self.look()
        for one in views:
            claim = claims[one.member]
            same = claim.success and one.instance == claim.document.get("instance")
            if same and one.steered_by != self._label:
                raise FleetBusy(f"{one.member}: {one.steered_by or 'another fleet'} has steered it since.")
        return views

    async def view(self, endpoint: Endpoint) -> MemberView:
        """What one engine says of itself."""
        return MemberView.of(await self.call(endpoint, "/server_info", None))

    async def confirm(
        self,
        endpoints: Sequence[Endpoint],
        version: str,
        *,
        expected: str | None = None,
        timeout: float | None = None,
    ) -> tuple[str | None, list[MemberOutcome]]:
        """Whether these engines have the same weights of this version: their checksum, and an outcome for each.

        Where checksums differ, those of the minority are wrong; with a tie, all are.

        Args:
            expected: the checksum that they must have, where it is known.
        """
        outcomes = await self.send("/weights_checker", {"action": "checksum"}, endpoints, timeout=timeout)
        sums = [_text(one.document.get("per_engine_checksum")) if one.success else None for one in outcomes]
        known = [one for one in sums if one is not None]
        counts = sorted(((known.count(one), one) for one in set(known)), reverse=True)
        tie = len(counts) > 1 and counts[0][0] == counts[1][0]
        common = expected or (None if not counts or tie else counts[0][1])
        judged = [_judge(one, digest, common, version) for one, digest in zip(outcomes, sums, strict=True)]
        return common if any(one.success for one in judged) else None, judged

    # -- Telling ----------------------------------------------------------------------------------------------

    async def send(
        self,
        path: str,
        body: Mapping[str, object] | None,
        endpoints: Sequence[Endpoint] | None = None,
        *,
        timeout: float | None = None,
        leased: bool = False,
    ) -> list[MemberOutcome]:
        """Send the same to all engines, or to some; an outcome for each. ``leased``: with each one's lease."""
        chosen = self.endpoints if endpoints is None else endpoints
        if leased and self._overtaken:
            return [MemberOutcome(one.name, False, self._overtaken, CONFLICT) for one in chosen]
        bodies = [
            {**(body or {}), "lease": self._leases.get(one.name, "")} if leased else body for one in chosen
        ]
        calls = (self.call(one, path, own, timeout=timeout) for one, own in zip(chosen, bodies, strict=True))
        return list(await asyncio.gather(*calls))

    async def call(
        self,
        endpoint: Endpoint,
        path: str,
        body: Mapping[str, object] | None,
        *,
        timeout: float | None = None,
    ) -> MemberOutcome:
        """Call one engine. That it did not answer is an outcome too."""
        async with self._limit:
            try:
                if timeout is None or timeout <= _LONG:
                    answer = await endpoint.call(path, body, timeout=timeout)
                else:
                    answer = await _watched(endpoint, path, body, timeout)
            except Unreachable as error:
                return MemberOutcome(endpoint.name, False, f"no answer ({error})")
        return MemberOutcome.of(endpoint.name, answer)

    async def verb(
        self, path: str, body: Mapping[str, object], *, timeout: float | None = None
    ) -> FleetReply:
        """A verb of the control plane, on every engine.

        Raises:
            FleetBusy: another verb is under way, or another fleet steers.
        """
        name = path.lstrip("/").partition("?")[0]
        async with self.steering(name):
            return FleetReply.over(name, await self.send(path, body, timeout=timeout))

    async def adopt(self) -> FleetReply:
        """Take what the engines serve as the fleet's weights: the same version and checksum on all.

        Raises:
            FleetBusy: another verb is under way, or another fleet steers.
        """
        async with self.steering("adopt") as claims:
            views = await self.survey(claims)
            outcomes = problems(views)
            versions = {one.weight_version for one in views}
            if all(one.success for one in outcomes) and len(versions) != 1:
                outcomes = [
                    MemberOutcome(one.member, False, f"serves {shown(one.weight_version)}") for one in views
                ]
            if not all(one.success for one in outcomes):
                return FleetReply(False, summary("adopt", outcomes), tuple(outcomes))
            version = str(versions.pop())
            checksum, outcomes = await self.confirm(self.endpoints, version, timeout=3600.0)
            done = checksum is not None and all(one.success for one in outcomes)
            if done and checksum is not None:
                paths = {one.model_path for one in views}
                path = paths.pop() if len(paths) == 1 else None
                self.file.save(served=Served(version, path, checksum), held=())
            return FleetReply(
                done,
                summary("adopt", outcomes),
                tuple(outcomes),
                weight_version=version if done else None,
                notes=_still_to_join(views) if done else (),
            )


async def _watched(
    endpoint: Endpoint, path: str, body: Mapping[str, object] | None, timeout: float
) -> Answer:
    """Wait long for an answer, but give up on an engine that answers nothing else either."""
    asking = asyncio.ensure_future(endpoint.call(path, body, timeout=timeout))
    silent = 0
    try:
        while silent < _SILENT:
            done, _ = await asyncio.wait((asking,), timeout=_LONG / _SILENT)
            if done:
                return asking.result()
            try:
                await endpoint.call("/ping", timeout=_LONG / _SILENT)
                silent = 0
            except Unreachable:
                silent += 1
        raise Unreachable(f"it has not answered anything for {_LONG:g} s or more")
    finally:
        asking.cancel()


def _judge(outcome: MemberOutcome, digest: str | None, common: str | None, version: str) -> MemberOutcome:
    if not outcome.success:
        return outcome
    said = outcome.document.get("weight_version")
    if said != version:
        message = f"has version {shown(said)}, not {shown(version)}"
    elif digest is None:
        message = "gave no checksum of its weights"
    elif digest != common:
        known = "any other's" if common is None else common
        message = f"has other weights under the name {shown(version)}: checksum {digest}, not {known}"
    else:
        return outcome
    return MemberOutcome(outcome.member, False, message, outcome.status)


def _still_to_join(views: Sequence[MemberView]) -> tuple[str, ...]:
    waiting = sum(one.awaits_fleet is True for one in views)
    told = "of these, started to wait for the fleet, will serve nobody before the next tend or update"
    return (f"{counted(waiting, 'engine')} {told}",) if waiting else ()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
