"""One hook on trial: called on one device, in one situation, with everything around it watched."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from devicekit_conformance import frozen_contract
from devicekit_conformance.context import Context, Failure, NotApplicable, NotRun
from devicekit_conformance.environment_reads import reads_of
from devicekit_conformance.printing import printed
from devicekit_conformance.surroundings import Surroundings, count_of, runtime

if TYPE_CHECKING:
    import torch

    from devicekit_conformance.probe import Token

__all__ = ["Trial"]

_THOROUGH = 6  # calls whose whole surroundings are compared; later ones are watched more cheaply
# Others may need what they are given for as long as what they made of it is there.
_KEEPS_NOTHING = frozenset(
    {"classify_error", "pin_memory", "is_pinned", "native_handle", "set_rng_state", "unregister_host_memory"}
)
_FOREVER = 1e5  # seconds of work, where time is the probe's own
# Pending work is of all lengths, in no order: who has waited for a part of it has not waited for the rest.
_LENGTHS = itertools.cycle((1, 7, 3, 9, 2, 8, 5))


@dataclass
class Trial:
    """What an effect is given: the hook that is judged, and roads around it."""

    ctx: Context
    hook: str
    index: int = 0
    situation: str = ""
    watched: bool = True
    calls: list[int] = field(default_factory=lambda: [0])
    facts: list[str] = field(default_factory=list)  # that another process is asked for, too
    answers: list[object] = field(default_factory=list)  # of the last calls
    # What of the process has changed since the effect began, where that is watched.
    since: Callable[[Mapping[str, object]], list[str]] | None = None

    # -- The hook ---------------------------------------------------------------------------------------------

    def call(self, *arguments: object) -> Any:
        """Call the hook; fail where it raises, answers with another type, or leaves something behind."""
        self.calls[0] += 1
        thorough = self.watched and self.calls[0] <= _THOROUGH
        around = Surroundings(self.ctx, self.hook, self.index, thorough)
        used = self.since(around.process) if self.since is not None and thorough else []
        self.expect(not used, f"{'; '.join(used[:3])} after what it returned was used")
        earlier = [(one, printed(one)) for one in (*self.answers, *arguments)]
        given = [one for one in arguments if not isinstance(one, int | float | str | None)]
        kept = [sys.getrefcount(one) for one in given]  # a number may be anybody's
        reads: list[str] = []
        try:
            with reads_of(self.ctx.plugin) if thorough else contextlib.nullcontext(reads) as reads:
                found = self.ctx.raw_hook(self.hook)(*self.fitted(self.hook, arguments))
        except (NotRun, NotApplicable):
            raise
        except Exception as error:
            self.fail(f"raised {type(error).__name__}: {str(error)[:200]}")
        self.expect(not reads, f"it reads {reads[0]} from the environment" if reads else "")
        self._check_type(found)
        same = all(printed(one) == was for one, was in earlier)
        self.expect(same, "it changed what it was given, or what an earlier call of it returned")
        if self.hook in _KEEPS_NOTHING and self.watched:
            own = [sys.getrefcount(one) - (one is found) for one in given]
            self.expect(
                all(now <= was for now, was in zip(own, kept, strict=True)), "it keeps what it was given"
            )
        self.answers[:] = [*self.answers[-1:], found]
        if self.watched:
            changed = around.changes()
            if changed:
                self.fail(f"{'; '.join(changed[:3])}")
        return found

    def fitted(self, hook: str, arguments: tuple[object, ...]) -> tuple[object, ...]:
        """Arguments for what the backend's own hook takes: what was appended asks for nothing."""
        if not self.ctx.has(hook):
            return arguments
        taken = self.ctx.opened.parameters(hook)
        return (*arguments, *frozen_contract.asking_nothing(hook, len(arguments), taken))[: len(taken)]

    def _check_type(self, found: object) -> None:
        try:
            self.ctx.check_type(self.hook, found)
        except Failure as failure:
            self.fail(str(failure))

    # -- Words ------------------------------------------------------------------------------------------------

    def fail(self, what: str) -> NoReturn:
        place = f"on device {self.index}" if "index" in frozen_contract.hook(self.hook).parameters else ""
        where = ", ".join(one for one in (place, self.situation) if one)
        raise Failure(f"{self.hook}(){' ' + where if where else ''}: {what}")

    def expect(self, condition: object, what: str) -> None:
        if not condition:
            self.fail(what)

    def equal(self, found: object, wanted: object, what: str) -> None:
        """Fail unless the two are equal, saying both."""
        if found != wanted:
            self.fail(f"{what} is {_short(found)}, and it should be {_short(wanted)}")

    # -- Roads around it --------------------------------------------------------------------------------------

    @property
    def runtime(self) -> Any:
        return runtime(self.ctx)

    @property
    def count(self) -> int:
        return count_of(self.ctx)

    @property
    def others(self) -> list[int]:
        return [index for index in range(self.count) if index != self.index]

    def has(self, name: str) -> bool:
        return self.ctx.has(name)

    def other(self, name: str, *arguments: object) -> Any:
        """Another hook, as a tool. What it does is not judged here, unless it is the one on trial after all."""
        if name == self.hook:
            return self.call(*arguments)
        try:
            return self.ctx.raw_hook(name)(*self.fitted(name, arguments))
        except (NotRun, NotApplicable):
            raise
        except Exception as error:
            self.fail(f"cannot be judged, for {name}() raised {type(error).__name__}: {str(error)[:200]}")

    def own(self, name: str, *arguments: object) -> Any:
        """What torch's own function of that name says; ``None`` where there is none, or it cannot."""
        function = getattr(self.runtime, name, None)
        if not callable(function):
            return None
        try:
            return function(*arguments)
        except Exception:
            return None

    def tensor(self, size: int, index: int | None = None) -> torch.Tensor:
        return self.ctx.probe.tensor(size, self.index if index is None else index)

    def filled(self, size: int, value: int, index: int | None = None) -> torch.Tensor:
        return self.tensor(size, index).fill_(value)

    def work(self, stream: object | None = None, index: int | None = None) -> Token | None:
        """A little work; ``None`` where the probe cannot ask about it."""
        return self.ctx.probe.submit(self.index if index is None else index, stream)

    def long_work(self, stream: object | None = None, index: int | None = None) -> Token | None:
        """More work than anybody has patience for."""
        where = self.index if index is None else index
        submit = getattr(self.ctx.probe, "submit_long", None)
        if callable(submit):
            found: Token | None = submit(where, stream, _FOREVER * next(_LENGTHS))
            return found
        token = None
        for _ in range(3):
            token = self.ctx.probe.submit(where, stream)
        return token

    def drop_cache(self) -> None:
        """Empty the cache by torch's own road, or by the hook's."""
        if callable(getattr(self.runtime, "empty_cache", None)):
            self.own("empty_cache")
        elif self.ctx.has("empty_cache") and self.hook != "empty_cache":
            self.other("empty_cache")

    def finish(self) -> None:
        """Wait for every device by torch's own road, or by the hook's where there is none."""
        for index in range(self.count):
            if callable(getattr(self.runtime, "synchronize", None)):
                self.runtime.synchronize(index)
            elif self.hook != "synchronize":
                self.other("synchronize", index)

    @contextlib.contextmanager
    def current(self, index: int) -> Iterator[None]:
        """Make a device current for a block, by torch's own road or the hook's."""
        initialises = frozen_contract.hook(self.hook).initialises
        before = self.current_index() if initialises else self.ctx.probe.current_index()
        if before is None:
            yield
            return
        self.select(index)
        try:
            yield
        finally:
            self.select(before)

    def current_index(self) -> int | None:
        """The calling thread's device as the probe sees it; 0 where nothing has used one, and so chosen one."""
        found = self.ctx.probe.current_index()
        return 0 if found is None and self.ctx.probe.initialised() is False else found

    def select(self, index: int) -> None:
        if callable(getattr(self.runtime, "set_device", None)):
            self.runtime.set_device(index)
        elif self.ctx.has("set_index") and self.hook != "set_index":
            self.other("set_index", index)

    def new_stream(self, index: int | None = None) -> Any:
        """A stream by torch's own class, or by the hook; ``None`` where there are none."""
        where = self.index if index is None else index
        kind = getattr(self.runtime, "Stream", None)
        if kind is not None and self.ctx.claims("streams"):
            with contextlib.suppress(Exception):
                return kind(where)
        if self.ctx.claims("streams") and self.ctx.has("create_stream"):
            return self.other("create_stream", where, 0)
        return None

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        """Make a stream current for a block, by torch's own road or the hook's."""
        if stream is None:
            yield
            return
        road = getattr(self.runtime, "stream", None)
        entered = road(stream) if callable(road) else self.other("use_stream", stream)
        with entered:
            yield

    def in_a_thread(self, look: Callable[[], Any]) -> Any:
        """What ``look`` finds in another thread, or raises there."""
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(look).result()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def go_to_a_folder_in(folder: str) -> None:
    """Go to an empty folder, so that what is left there is seen. For processes that end with the trial.

    Temporary files go to the folder around it: who goes there is seen, too.
    """
    import tempfile

    here = os.path.join(folder, "here")
    os.mkdir(here)
    os.chdir(here)
    tempfile.tempdir = folder


Effect = Callable[[Trial], None]
