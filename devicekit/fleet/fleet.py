"""The fleet itself: a verb for all its engines, and what each of them made of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from devicekit.contract.errors import ConfigurationError
from devicekit.fleet.endpoint import Endpoint, Unreachable
from devicekit.fleet.errors import FleetBusy
from devicekit.fleet.outcomes import FleetReply, MemberOutcome, MemberView, summary
from devicekit.fleet.record import RecordFile, Served

_AT_ONCE = 64  # calls under way
_COMMON = ("served_model_name", "page_size", "max_context_length", "vocab_size")  # to engines of one fleet


class Fleet:
    """Engines, and the file that says what they must have.

    One verb at a time changes anything: another one meanwhile raises `FleetBusy`.
    """

    def __init__(self, endpoints: Sequence[Endpoint], file: RecordFile) -> None:
        """``endpoints``: one for each member that the file names.

        Raises:
            ConfigurationError: they are not the members of the file.
        """
        names = [one.name for one in endpoints]
        if sorted(names) != sorted(file.record.members):
            raise ConfigurationError(f"The fleet of {file.path} is {file.record.members}, not {names}.")
        self.endpoints = tuple(endpoints)
        self.file = file
        self._limit = asyncio.Semaphore(_AT_ONCE)
        self._busy: str | None = None

    @asynccontextmanager
    async def steering(self, verb: str) -> AsyncIterator[None]:
        """Be the only verb that changes anything.

        Raises:
            FleetBusy: another one does.
        """
        if self._busy is not None:
            raise FleetBusy(f"The fleet is busy: {self._busy} is under way.")
        self._busy = verb
        try:
            yield
        finally:
            self._busy = None

    @property
    def busy(self) -> str | None:
        """The verb that is under way."""
        return self._busy

    # -- Asking -----------------------------------------------------------------------------------------------

    async def look(self) -> list[MemberView]:
        """What every engine says of itself. Changes nothing."""
        return list(await asyncio.gather(*(self._look(one) for one in self.endpoints)))

    async def _look(self, endpoint: Endpoint) -> MemberView:
        outcome = await self.call(endpoint, "/server_info", None)
        if not outcome.success:
            return MemberView(endpoint.name, False, outcome.message)
        seen = outcome.document
        kind = tuple(
            f"{name}={seen.get(name)}" for name in ("model_type", "architectures", "vocab_size", "page_size")
        )
        waits = seen.get("awaits_fleet")
        return MemberView(
            endpoint.name,
            True,
            instance=_text(seen.get("instance")),
            weight_version=_text(seen.get("weight_version")),
            status=_text(seen.get("status")),
            awaits_fleet=waits if isinstance(waits, bool) else None,
            prepared_update=_text(seen.get("prepared_update")),
            model_path=_text(seen.get("model_path")),
            kind=kind,
        )

    async def confirm(
        self, endpoints: Sequence[Endpoint], version: str
    ) -> tuple[str | None, list[MemberOutcome]]:
        """Whether these engines have the same weights of this version: their checksum, and each one's word.

        Where checksums differ, those of the fewer are the wrong ones; as many on both sides: all are.
        """
        outcomes = await self.send("/weights_checker", {"action": "checksum"}, endpoints)
        sums = [str(one.document.get("per_engine_checksum")) if one.success else None for one in outcomes]
        known = [one for one in sums if one is not None]
        counts = sorted(((known.count(one), one) for one in set(known)), reverse=True)
        tie = len(counts) > 1 and counts[0][0] == counts[1][0]
        common = None if not counts or tie else counts[0][1]
        judged = [_judge(one, digest, common, version) for one, digest in zip(outcomes, sums, strict=True)]
        return common, judged

    # -- Telling ----------------------------------------------------------------------------------------------

    async def send(
        self,
        path: str,
        body: Mapping[str, object] | None,
        endpoints: Sequence[Endpoint] | None = None,
        *,
        timeout: float | None = None,
    ) -> list[MemberOutcome]:
        """The same to all, or to some; each one's outcome."""
        chosen = self.endpoints if endpoints is None else endpoints
        return list(await asyncio.gather(*(self.call(one, path, body, timeout=timeout) for one in chosen)))

    async def call(
        self,
        endpoint: Endpoint,
        path: str,
        body: Mapping[str, object] | None,
        *,
        timeout: float | None = None,
    ) -> MemberOutcome:
        """One engine's outcome; that it did not answer is one too."""
        async with self._limit:
            try:
                answer = await endpoint.call(path, body, timeout=timeout)
            except Unreachable as error:
                return MemberOutcome(endpoint.name, False, f"no answer ({error})")
        return MemberOutcome.of(endpoint.name, answer)

    async def verb(
        self, path: str, body: Mapping[str, object], *, timeout: float | None = None
    ) -> FleetReply:
        """A verb of the control plane, on every engine.

        Raises:
            FleetBusy: another verb is under way.
        """
        async with self.steering(path.lstrip("/")):
            return FleetReply.over(path.lstrip("/"), await self.send(path, body, timeout=timeout))

    async def adopt(self) -> FleetReply:
        """Take what the engines serve as the fleet's weights: the same version and checksum on all.

        Raises:
            FleetBusy: another verb is under way.
        """
        async with self.steering("adopt"):
            views = await self.look()
            versions = {one.weight_version for one in views if one.reachable}
            silent = [MemberOutcome(one.member, False, one.message) for one in views if not one.reachable]
            if silent or len(versions) != 1:
                outcomes = silent or [
                    MemberOutcome(one.member, False, f"serves {one.weight_version!r}") for one in views
                ]
                return FleetReply(False, summary("adopt", outcomes), tuple(outcomes))
            version = str(versions.pop())
            checksum, outcomes = await self.confirm(self.endpoints, version)
            done = checksum is not None and all(one.success for one in outcomes)
            if done and checksum is not None:
                paths = {one.model_path for one in views}
                path = paths.pop() if len(paths) == 1 else None
                self.file.save(served=Served(version, path, checksum), held=())
            return FleetReply(
                done, summary("adopt", outcomes), tuple(outcomes), weight_version=version if done else None
            )


def _judge(outcome: MemberOutcome, digest: str | None, common: str | None, version: str) -> MemberOutcome:
    if digest is None:
        return outcome
    said = outcome.document.get("weight_version")
    if said != version:
        return MemberOutcome(outcome.member, False, f"has version {said!r}, not {version!r}", outcome.status)
    if digest != common:
        message = f"has other weights under the name {version!r}: checksum {digest}, not {common}"
        return MemberOutcome(outcome.member, False, message, outcome.status)
    return outcome


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
