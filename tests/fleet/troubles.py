"""What may happen to a fleet at any call besides its network: each trouble is one thing, done once.

A run draws a few of them (`draw`), so that each is seen alone, and with any other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from devicekit.fleet import Fleet, FleetBusy, FleetError, FleetUpdate, open_record
from tests.fleet.names import Names
from tests.fleet.simulated import CHECKPOINTS, SimEngine, World


class Troubles:
    """The troubles of one run."""

    def __init__(self, folder: Path, world: World, names: Names, *, changing: bool) -> None:
        """``changing``: who belongs to the fleet may change."""
        self.folder = folder
        self._world, self._names = world, names
        self._rng = world.rng
        self._kinds = (*self.KINDS, *(self.CHANGES if changing else ()))
        self._count = 0
        self.fleet: Fleet | None = None  # that steers now

    def begin(self, calls: int) -> None:
        """Have some of them happen within so many calls from now."""
        kinds = self._rng.sample(self._kinds, self._rng.choice((0, 1, 1, 2, 3)))
        at = (self._world.calls + self._rng.randrange(1, calls) for _ in kinds)
        self._world.happenings = [(call, self._one(kind)) for call, kind in zip(at, kinds, strict=True)]

    def end(self) -> None:
        """Everything is as it should be, but for what engines have and serve."""
        self._world.happenings = []
        self._names.settle()
        for one in self._names.engines:
            one.refuses.clear()
            one.ignores.clear()
            one.lacks.clear()
            one.lies = one.gives = None
            one.pace, one.endless = 3, False
            if one.kind:
                one.restart()
                one.kind = {}
        self.heal()

    def heal(self) -> None:
        """There is room on the disk again, and the name is resolved."""
        self._full(False)
        self._names.answers = True

    def _one(self, kind: Callable[[Troubles, SimEngine], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        return lambda: kind(self, self._rng.choice(self._names.engines))

    def _full(self, full: bool) -> None:
        """The file's disk is full: nothing can be written beside it."""
        for file in self.folder.glob("*.lock"):
            beside = self.folder / f"{file.name.removesuffix('.lock')}.new"
            if full:
                beside.mkdir(exist_ok=True)
            elif beside.is_dir():
                beside.rmdir()

    # -- One each -------------------------------------------------------------------------------------------------

    async def ends_and_comes_back(self, one: SimEngine) -> None:
        one.restart()

    async def comes_back_with_other_pages(self, one: SimEngine) -> None:
        one.restart()
        one.kind = {"page_size": 32}

    async def comes_back_with_another_key(self, one: SimEngine) -> None:
        one.restart()
        one.refuses.add("*")

    async def is_changed_past_the_fleet(self, one: SimEngine) -> None:
        """While it serves nobody; an engine that serves is everybody's own affair."""
        if not one.serves:
            one.change(weights="x", version="other")

    async def loads_something_else(self, one: SimEngine) -> None:
        one.lies = f"x of {one.name}"  # where all load the same, that is what is there

    async def says_that_it_did(self, one: SimEngine) -> None:
        """And has done nothing, of one kind."""
        paths = ("/prepare_weight_update", "/commit_weight_update", "/join_fleet", "/discard_weight_update")
        one.ignores.add(self._rng.choice(paths))

    async def lacks_the_files(self, one: SimEngine) -> None:
        one.lacks.update(("/new", "/newer", "/old"))
        one.gives = self._rng.choice((None, "x"))

    async def drags(self, one: SimEngine) -> None:
        one.pace = 60

    async def ends_no_request(self, one: SimEngine) -> None:
        one.endless = True

    async def the_clocks_jump(self, one: SimEngine) -> None:
        """As those of a machine that was suspended: whatever waits for a time has waited long enough."""
        self._world.jumped += self._rng.choice((1.0, 40.0, 86400.0))

    async def the_disk_is_full(self, one: SimEngine) -> None:
        self._full(True)

    async def another_verb_comes(self, one: SimEngine) -> None:
        """Of the same process: it is told that the fleet is busy."""
        assert self.fleet is not None
        try:
            await self.fleet.verb("/flush_cache", {})
        except FleetBusy:
            return
        raise AssertionError("a verb was let in while another one was under way")

    async def the_process_stands_still(self, one: SimEngine) -> None:
        """And another fleet takes the engines over meanwhile."""
        engines = self._names.engines
        steered = any(one.membership.steered_by for one in engines)
        self._count += 1
        path = self._rng.choice(("/new", "/newer", "/old"))
        names = [one.name for one in engines]
        steering, self.fleet = self.fleet, None
        happening, self._world.happenings = self._world.happenings, []
        kill, self._world.kill_at = self._world.kill_at, None
        with open_record(self.folder / f"other{self._count}", names) as file:
            other = Fleet(engines, file, take_over=True)
            try:
                done = await FleetUpdate(other).all_at_once(path, f"taken over {self._count}")
                if steered and done.outcome != "unchanged":
                    self.overtaken = CHECKPOINTS[path] if done.success else ""
            except FleetError:
                pass
        self.fleet, self._world.happenings, self._world.kill_at = steering, happening, kill

    # -- Who belongs to the fleet ---------------------------------------------------------------------------------

    async def another_appears(self, one: SimEngine) -> None:
        self._names.appear()

    async def is_taken_away(self, one: SimEngine) -> None:
        self._names.drop(one, ends=True)

    async def is_named_no_longer(self, one: SimEngine) -> None:
        self._names.drop(one, ends=False)

    async def is_named_no_longer_for_a_while(self, one: SimEngine) -> None:
        self._names.drop(one, ends=False)

        async def again() -> None:
            self._names.return_(one)

        self._world.happenings.append((self._world.calls + self._rng.randrange(1, 80), again))

    async def has_another_address(self, one: SimEngine) -> None:
        self._names.move(one)

    async def is_started_elsewhere(self, one: SimEngine) -> None:
        self._names.appear()
        self._names.drop(one, ends=True)

    async def has_two_addresses(self, one: SimEngine) -> None:
        self._names.double(one)

    async def the_name_is_not_resolved(self, one: SimEngine) -> None:
        self._names.answers = False

    overtaken: str | None = None  # what another fleet has confirmed meanwhile; empty: it came half-way

    KINDS: tuple[Callable[[Troubles, SimEngine], Awaitable[None]], ...] = (
        ends_and_comes_back,
        comes_back_with_other_pages,
        comes_back_with_another_key,
        is_changed_past_the_fleet,
        loads_something_else,
        says_that_it_did,
        lacks_the_files,
        drags,
        ends_no_request,
        the_clocks_jump,
        the_disk_is_full,
        another_verb_comes,
        the_process_stands_still,
    )
    CHANGES: tuple[Callable[[Troubles, SimEngine], Awaitable[None]], ...] = (
        another_appears,
        is_taken_away,
        is_named_no_longer,
        is_named_no_longer_for_a_while,
        has_another_address,
        is_started_elsewhere,
        has_two_addresses,
        the_name_is_not_resolved,
    )
