"""What was set for good, and stays set whatever else is called."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from devicekit_conformance.pages import on_own_pages

if TYPE_CHECKING:
    from devicekit_conformance.trial import Trial

__all__ = ["Lasting"]

_BLOCK = 3 << 20  # bytes
_SERVED = 3 << 20  # bytes, that a pool serves


class Lasting:
    """A limit, a setting of the allocator, and page-locked memory, as far as the backend has them.

    The hook on trial sets nothing of it, for its call may change what it is for.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._checks: list[tuple[str, Callable[[], bool]]] = []
        self._ends: list[Callable[[], object]] = []
        self._limit()
        self._setting()
        self._locked()
        self._recording()
        self._block()

    def _has(self, *hooks: str) -> bool:
        return all(self._trial.has(hook) and self._trial.hook != hook for hook in hooks)

    def _limit(self) -> None:
        from devicekit_conformance.effects.limits import fits, total_of

        trial = self._trial
        total = total_of(trial, trial.index) if trial.ctx.claims("memory_fraction") else None
        if total is None or not self._has("set_memory_fraction"):
            return
        trial.other("set_memory_fraction", trial.index, 0.5)
        self._checks.append(("the limit that was set", lambda: not fits(trial, trial.index, total * 3 // 5)))
        self._ends.append(lambda: trial.other("set_memory_fraction", trial.index, 1.0))

    def _setting(self) -> None:
        trial = self._trial
        if not self._has("allocator_settings", "set_allocator_setting"):
            return
        for name, value in _changeable(trial):
            try:
                trial.ctx.raw_hook("set_allocator_setting")(name, str(2 * int(value)))
            except ValueError:
                continue
            self._checks.append((f"the allocator's setting {name}", _same(trial, name)))
            self._ends.append(partial(trial.other, "set_allocator_setting", name, value))
            return

    def _locked(self) -> None:
        trial = self._trial
        place, words = on_own_pages(), torch.arange(4096)
        if self._has("register_host_memory", "unregister_host_memory"):
            trial.other("register_host_memory", place)
            self._checks.append(("registered memory", lambda: trial.ctx.probe.pinned(place) is not False))
            self._ends.append(lambda: trial.other("unregister_host_memory", place))
        if self._has("pin_memory") and trial.ctx.claims("pinned_memory"):
            pinned: Any = trial.other("pin_memory", words)
            self._checks.append(
                (
                    "pinned memory",
                    lambda: trial.ctx.probe.pinned(pinned) is not False and torch.equal(pinned, words),
                )
            )

    def _recording(self) -> None:
        """A recording of allocations, which tells more of a new block than there is to tell without it."""
        trial = self._trial
        if not self._has("record_memory_history", "memory_snapshot") or trial.runtime is None:
            return
        record = partial(trial.other, "record_memory_history", trial.index)

        def tells_more() -> bool:
            """Than without a recording, which ends here: what is cached is the same both times."""
            _growth(trial)
            recorded = _growth(trial)
            record(False)
            return recorded > _growth(trial)

        record(True)
        self._ends.append(partial(record, False))
        if tells_more():
            record(True)
            self._checks.append(("the recording of allocations", tells_more))

    def _block(self) -> None:
        """A block in which a pool serves: what it served is nobody else's after it."""
        trial = self._trial
        pools = trial.ctx.claims("memory_pools") and trial.ctx.claims("caching_allocator")
        if not pools or not self._has("memory_pool"):
            return
        pool = trial.other("memory_pool", trial.index)
        inside = pool.use()
        inside.__enter__()
        held = [pool]  # for as long as the block lasts: what nobody holds may go back meanwhile
        del pool

        def leave() -> None:
            if held:
                inside.__exit__(None, None, None)
                held.clear()

        def serves() -> bool:
            block = trial.tensor(_SERVED)
            address = block.data_ptr()
            leave()
            del block
            outside = [trial.tensor(_SERVED) for _ in range(2)]
            return address not in [one.data_ptr() for one in outside]

        self._checks.insert(0, ("the block of a pool", serves))
        self._ends.insert(0, leave)

    def check(self, when: str) -> None:
        """Fail the trial where something is not as it was set, and set all of it back."""
        try:
            for name, holds in self._checks:
                self._trial.expect(holds(), f"{when}, {name} is not what it was")
        finally:
            for end in self._ends:
                end()


def _growth(trial: Trial) -> int:
    """How many more facts a snapshot holds with two new blocks; 0 where there is no snapshot."""
    from devicekit_conformance.effects.limits import leaves

    told = [trial.other("memory_snapshot", trial.index)]
    kept = [trial.tensor(_BLOCK) for _ in range(2)]
    told.append(trial.other("memory_snapshot", trial.index))
    del kept
    return 0 if None in told else leaves(told[1]) - leaves(told[0])


def _same(trial: Trial, name: str) -> Callable[[], bool]:
    def value() -> str | None:
        return {one.name: one.value for one in trial.other("allocator_settings") or ()}.get(name)

    wanted = value()
    return lambda: value() == wanted


def _changeable(trial: Trial) -> list[tuple[str, str]]:
    """Settings that are numbers and can be changed, with their values; what starts the allocator may fix some."""
    trial.tensor(1)
    found = trial.other("allocator_settings") or ()
    return [(one.name, one.value) for one in found if one.changeable is True and one.value.isdigit()]
