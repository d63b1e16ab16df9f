"""What a name resolves to, while engines come, go, move and are named twice: a source of a fleet's members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from devicekit.fleet import Answer, UnknownMembers, Unreachable
from tests.fleet.simulated import SimEngine, World


class Names:
    """Where clients and the fleet find engines. Who is not named is asked nothing by any client."""

    def __init__(self, world: World, engines: Sequence[SimEngine]) -> None:
        self._world = world
        self._engines = {one.name: one for one in engines}  # whoever was named once
        self._named = list(self._engines)
        self._gone: set[str] = set()  # addresses under which nobody is found any more
        self.answers = True

    @property
    def engines(self) -> list[SimEngine]:
        """Who is named now, each once."""
        return list(dict.fromkeys(self._engines[name] for name in self._named))

    async def members(self) -> tuple[str, ...]:
        """As of `MemberSource`."""
        if not self.answers or not self._named:
            raise UnknownMembers("the name is not resolved")
        return tuple(sorted(self._named))

    def connect(self, name: str) -> Address:
        """Reach whoever is at that address."""
        return Address(self, name, self._engines[name])

    def appear(self) -> SimEngine:
        """Another engine is started, which waits for the fleet's weights."""
        engine = SimEngine(self._another(), self._world, waits=True)
        self._engines[engine.name] = engine
        self._named.append(engine.name)
        return engine

    def drop(self, one: SimEngine, *, ends: bool) -> None:
        """It is named no longer; it ends, or goes on and knows nothing of that."""
        if one not in self.engines or len(self.engines) < 2:
            return
        self._named = [name for name in self._named if self._engines[name] is not one]
        one.change(named=False, down=one.down or ends)

    def move(self, one: SimEngine) -> None:
        """The same process has another address."""
        name = self._another()
        self._gone |= {old for old in self._named if self._engines[old] is one}
        self._named = [name if self._engines[old] is one else old for old in self._named]
        self._engines[name] = self._world.engines[name] = one

    def double(self, one: SimEngine) -> None:
        """It has a second address."""
        name = self._another()
        self._engines[name] = self._world.engines[name] = one
        self._named.append(name)

    def settle(self) -> None:
        """Everybody who lives is named, once."""
        self.answers = True
        now: dict[SimEngine, str] = {}
        for name, one in self._engines.items():
            if name not in self._gone and not one.down:
                now.setdefault(one, name)
        for one in now.keys() - set(self.engines):
            self.return_(one)
        self._named = list(now.values())

    def return_(self, one: SimEngine) -> None:
        """Who went on unnamed is named again, and may serve what it served then until the fleet looks."""
        if one in self.engines or one.down:
            return
        self._named.append(next(name for name, its in self._engines.items() if its is one))
        one.change(named=True, astray=one.serves)

    def reachable(self, name: str) -> bool:
        return name not in self._gone

    def _another(self) -> str:
        return f"http://engine{len(self._engines)}"


class Address:
    """An endpoint: one address, and who is there."""

    def __init__(self, names: Names, name: str, engine: SimEngine) -> None:
        self.name = name
        self._names, self._engine = names, engine

    async def call(
        self, path: str, body: Mapping[str, object] | None = None, *, timeout: float | None = None
    ) -> Answer:
        if not self._names.reachable(self.name):
            raise Unreachable("nobody is at this address")
        return await self._engine.call(path, body, timeout=timeout)

    async def close(self) -> None:
        """There is no connection."""
