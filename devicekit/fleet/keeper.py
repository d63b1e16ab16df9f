"""What a served fleet does by itself: finish interrupted updates, and bring weights to engines that lack them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from devicekit.contract.errors import DeviceKitError
from devicekit.fleet.errors import FleetBusy
from devicekit.fleet.fleet import BACKGROUND, Fleet
from devicekit.fleet.outcomes import FleetReply
from devicekit.fleet.tend import needs_tending, tend
from devicekit.fleet.update import FleetUpdate

_log = logging.getLogger(__name__)


class Keeper:
    """Looks after one fleet, until cancelled."""

    def __init__(self, fleet: Fleet, *, every: float, adopt: bool = False) -> None:
        """
        Args:
            every: seconds between two looks at the engines.
            adopt: take what the first engines have as the fleet's weights, where none are known.
        """
        self._fleet = fleet
        self._adopt = adopt
        self._every = every
        self._said = ""

    async def run(self) -> None:
        """Resume once, then look again and again. Each problem is logged once."""
        if self._fleet.file.record.update is not None:
            await self._try(FleetUpdate(self._fleet).resume)
        while True:
            await self._try(self.look)
            await asyncio.sleep(self._every)

    async def look(self) -> FleetReply | None:
        """Tend the engines that need it; ``None``: no engine does, or another verb is under way.

        Raises:
            FleetBusy: another fleet steers an engine.
            FleetError: who belongs to the fleet cannot be found out.
        """
        fleet = self._fleet
        if fleet.busy is not None:
            return None
        await fleet.refresh()
        if self._adopt and fleet.file.record.served is None and fleet.file.record.update is None:
            adopted = await fleet.adopt()
            if not adopted.success:
                return adopted
        views = await fleet.look()
        record = fleet.file.record
        # Busy by now: whoever is at it sees to the engines, and must not find them changed.
        if fleet.busy is not None or record.update is not None or record.served is None:
            return None
        if not any(needs_tending(record, one) for one in views):
            return None
        return await tend(fleet, verb=BACKGROUND)

    async def _try(self, work: Callable[[], Awaitable[FleetReply | None]]) -> None:
        try:
            reply = await work()
        except FleetBusy as error:
            self._say(str(error))
        except DeviceKitError as error:
            self._say(f"{type(error).__name__}: {error}")
        else:
            if reply is not None:
                self._say(reply.message)

    def _say(self, message: str) -> None:
        if message != self._said:
            self._said = message
            _log.warning("%s", message)
