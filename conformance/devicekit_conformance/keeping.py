"""What one hook made, kept while others are called: it stays what it is until it is ended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from devicekit_conformance import frozen_contract
from devicekit_conformance.calling import arguments_for
from devicekit_conformance.context import MIB
from devicekit_conformance.pages import NUMBERS, on_own_pages
from devicekit_conformance.printing import printed
from devicekit_conformance.telling import FACTS, in_order
from devicekit_conformance.trial import Trial

__all__ = ["Kept", "keep", "keepable"]


_SET = frozenset({"allocator_settings"})  # facts until somebody sets them


def _nothing() -> None:
    """There is nothing to end."""


@dataclass(frozen=True)
class Kept:
    """Something that lasts, how to see that it is what it was, and how it ends."""

    trial: Trial  # of the hook that made it
    what: str
    holds: Callable[[], bool]  # cheap: asked after every step
    ends_well: Callable[[], bool] = lambda: True  # asked once, before it is ended
    end: Callable[[], object] = _nothing
    selects: bool = False  # it lasts for the thread that made it, and is ended there

    def look(self, after: str) -> None:
        """Fail where it is not what it was."""
        self.trial.expect(self.holds(), f"after {after}, {self.what}")

    def finish(self) -> None:
        """Look more closely, and end it."""
        try:
            self.trial.expect(self.holds() and self.ends_well(), f"in the end {self.what}")
        finally:
            self.end()


Keeper: TypeAlias = Callable[[Trial], "Kept | None"]


def keepable(hook: str) -> bool:
    """Whether something of the hook can be kept."""
    return hook in _KEEPERS or _only_answers(hook) or _can_be_on(hook)


def keep(trial: Trial) -> Kept | None:
    """Let the hook make something that lasts; ``None`` where it cannot be made here."""
    return _KEEPERS.get(trial.hook, _on if _can_be_on(trial.hook) else _answer)(trial)


def _can_be_on(hook: str) -> bool:
    return frozen_contract.hook(hook).parameters == ("index", "enabled")


def _on(trial: Trial) -> Kept:
    """Something that goes on until it is ended."""
    trial.call(trial.index, True)
    return Kept(trial, "it ended", lambda: True, end=lambda: trial.call(trial.index, False))


def _only_answers(hook: str) -> bool:
    spec = frozen_contract.hook(hook)
    return spec.only_looks and spec.parameters in ((), ("index",)) and hook != "set_index"


def _answer(trial: Trial) -> Kept | None:
    """What a hook returned, which later calls do not change; and the same once more, where that cannot change."""
    arguments = arguments_for(trial)
    if arguments is None:
        return None
    found = trial.call(*arguments)
    trial.answers.clear()
    was = printed(found)

    def says_the_same() -> bool:
        return trial.hook not in FACTS - _SET or in_order(
            trial.ctx.raw_hook(trial.hook)(*arguments)
        ) == in_order(found)

    return Kept(
        trial, "what it returned is another, or what it says", lambda: printed(found) == was, says_the_same
    )


def _device(trial: Trial) -> Kept | None:
    before = trial.current_index()
    if before is None:
        return None
    trial.call(trial.index)
    chosen = trial.ctx.probe.current_index()
    trial.expect(chosen in (None, trial.index), f"device {chosen} is current")
    return Kept(
        trial, "the device that was chosen is not current",
        lambda: True, end=lambda: trial.select(before), selects=True,
    )  # fmt: skip


def _block_of_a_stream(trial: Trial) -> Kept | None:
    stream = trial.new_stream()
    if stream is None:
        return None
    block = trial.call(stream)
    trial.answers.clear()
    block.__enter__()
    now = trial.own("current_stream", trial.index)
    trial.expect(now is None or now == stream, "inside the block, another stream is current")
    return Kept(
        trial, "the block's stream is not current",
        lambda: True, end=lambda: block.__exit__(None, None, None), selects=True,
    )  # fmt: skip


def _stream_for_good(trial: Trial) -> Kept | None:
    before, stream = trial.own("current_stream", trial.index), trial.new_stream()
    if before is None or stream is None:
        return None
    trial.call(stream)
    trial.expect(trial.own("current_stream", trial.index) == stream, "another stream is current")
    return Kept(
        trial, "the stream that was set is not current",
        lambda: True, end=lambda: trial.call(before), selects=True,
    )  # fmt: skip


def _stream(trial: Trial) -> Kept | None:
    stream = trial.call(trial.index, 0)

    def works() -> bool:
        token = trial.work(stream)
        stream.synchronize()
        return (token is None or token.done()) and stream.query() is True

    return Kept(trial, "the stream that it made does not wait for its work", lambda: True, works)


def _event(trial: Trial) -> Kept | None:
    event = trial.call(trial.index, False)
    with trial.current(trial.index):
        event.record()
    event.synchronize()
    return Kept(trial, "an event that was reached is not any more", lambda: event.query() is True)


def _graph(trial: Trial) -> Kept | None:
    if not trial.ctx.claims("graphs"):
        return None
    graph, source = trial.call(trial.index), trial.filled(4096, 50)
    trial.answers.clear()
    with trial.current(trial.index), graph.capture():
        result = source + 1

    def replays() -> bool:
        with trial.current(trial.index):
            for value in (7, 8):
                source.fill_(value)
                graph.replay()
                trial.finish()
                if not bool((result.cpu() == value + 1).all()):
                    return False
        return True

    return Kept(trial, "a graph that was captured replays something else", lambda: True, replays, graph.reset)


def _pool(trial: Trial) -> Kept | None:
    if not trial.ctx.claims("memory_pools"):
        return None
    made: list[Any] = []  # the pool, and what is in it
    with trial.current(trial.index):
        made.append(trial.call(trial.index))
        trial.answers.clear()
        with made[0].use():
            made.append(trial.filled(MIB + 4096, 40))

    def holds() -> bool:
        return bool((made[1][-4096:].cpu() == 40).all())

    return Kept(trial, "memory in use of a pool holds other data", holds, end=made.clear)


def _registered(trial: Trial) -> Kept | None:
    place = on_own_pages()
    if not trial.has("unregister_host_memory"):
        return None
    trial.call(place)
    trial.answers.clear()

    def locked() -> bool:
        asked = not trial.has("is_pinned") or trial.other("is_pinned", place) is True
        return asked and trial.ctx.probe.pinned(place) is not False

    return Kept(
        trial, "registered memory is not page-locked", locked,
        lambda: torch.equal(place, torch.arange(NUMBERS)), lambda: trial.other("unregister_host_memory", place),
    )  # fmt: skip


def _pinned(trial: Trial) -> Kept | None:
    if not trial.ctx.claims("pinned_memory"):
        return None
    words = torch.arange(4096)
    pinned = trial.call(words)
    trial.answers.clear()

    def holds() -> bool:
        return trial.ctx.probe.pinned(pinned) is not False and torch.equal(pinned, words)

    return Kept(trial, "pinned memory in use is not page-locked, or holds other data", holds)


def _setting(trial: Trial) -> Kept | None:
    if not trial.has("allocator_settings"):
        return None

    def settings() -> dict[str, str]:
        return {one.name: one.value for one in trial.other("allocator_settings") or ()}

    trial.tensor(1)  # what starts the allocator may fix them
    changeable = [one for one in trial.other("allocator_settings") or () if one.changeable is True]
    for name, value in [(one.name, one.value) for one in changeable if one.value.isdigit()]:
        with contextlib.suppress(ValueError):
            trial.ctx.raw_hook(trial.hook)(name, str(2 * int(value)))
            return _until_set_back(trial, name, value, settings)
    return None


def _until_set_back(trial: Trial, name: str, value: str, settings: Callable[[], dict[str, str]]) -> Kept:
    wanted = settings()
    what = f"the setting {name}, or another, is not what it was"
    return Kept(trial, what, lambda: settings() == wanted, end=lambda: trial.call(name, value))


def _state(trial: Trial) -> Kept | None:
    """A random state, from which the same numbers follow however much was drawn and seeded meanwhile."""
    if not (trial.has("set_rng_state") and trial.ctx.claims("rng_state")):
        return None
    state = trial.call(trial.index)
    kept, wanted = state.clone(), list(trial.ctx.probe.random(trial.index, 16))

    def restores() -> bool:
        trial.other("set_rng_state", trial.index, kept)
        return list(trial.ctx.probe.random(trial.index, 16)) == wanted

    return Kept(
        trial, "other numbers follow the state that it returned, or the state is another",
        lambda: torch.equal(state, kept), restores,
    )  # fmt: skip


def _handle(trial: Trial) -> Kept | None:
    stream = trial.new_stream()
    if stream is None:
        return None
    was = trial.call(stream)
    return Kept(
        trial, "the handle of a stream is another", lambda: trial.ctx.raw_hook(trial.hook)(stream) == was
    )


def _same_stream(trial: Trial) -> Kept | None:
    was = trial.call(trial.index)
    again = lambda: trial.ctx.raw_hook(trial.hook)(trial.index) == was  # noqa: E731
    return Kept(trial, "the default stream is another", again)


def _shared(trial: Trial) -> Kept | None:
    if not trial.ctx.claims("ipc"):
        return None
    block = trial.filled(4096, 60)
    handle = trial.call(block)
    trial.answers.clear()

    def holds() -> bool:
        return handle is not None and bool((block.cpu() == 60).all())

    return Kept(trial, "memory in use that was exported holds other data", holds)


_KEEPERS: Mapping[str, Keeper] = {
    "set_index": _device, "use_stream": _block_of_a_stream, "set_current_stream": _stream_for_good,
    "create_stream": _stream, "create_event": _event, "create_graph": _graph, "memory_pool": _pool,
    "register_host_memory": _registered, "pin_memory": _pinned, "set_allocator_setting": _setting,
    "get_rng_state": _state, "native_handle": _handle, "default_stream": _same_stream, "export_ipc": _shared,
}  # fmt: skip
