"""Calls a hook in a process of its own, which ends where a call changes anything else, or waits for itself."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from devicekit_conformance.context import Context
from devicekit_conformance.reentering import interrupted
from devicekit_conformance.snapshot import captured_output
from devicekit_conformance.surroundings import Surroundings
from devicekit_conformance.trial import Trial
from devicekit_conformance.trying import in_a_child, warm_up

__all__ = ["in_a_fork", "undisturbed"]

_LIMIT = 15  # seconds, in which a call returns that is made while the hook runs
_FORK_LIMIT = 30.0  # seconds, in which a forked child imports something
_PLACES = 8  # of the calls that the hook makes, at which it is called again


def undisturbed(context: Context, hook: str) -> Callable[..., Any]:
    """The hook, each call of which ends the process with a message where it changed something or wrote anything.

    The first ones are interrupted by another, as by a finalizer, with a handle that is none.

    Opens the backend, whose classes the arguments may need, while nothing has used the device.
    """
    context.device_count  # noqa: B018
    warm_up()
    context.first_use  # noqa: B018
    call, raw, places = context.hook(hook), context.raw_hook(hook), iter(range(_PLACES))

    def refused(*arguments: object) -> None:
        with contextlib.suppress(Exception):
            raw(*arguments[:-1], object())

    def checked(*arguments: object) -> Any:
        place = next(places, None) if threading.current_thread() is threading.main_thread() else None
        if place is not None:
            with _returning(hook):
                interrupted(lambda: refused(*arguments), lambda: refused(*arguments), place)
        with captured_output() as output:
            around = Surroundings(context, hook, 0)
            found = call(*arguments)
            changed = around.changes()
        written = (output.stdout + output.stderr).strip()
        changed += [f"it wrote {written[:100]!r}"] if written else []
        if changed:
            raise SystemExit(f"{hook}() left changes behind: {'; '.join(changed[:3])}")
        return found

    return checked


def in_a_fork(context: Context, hook: str, *arguments: object) -> None:
    """Call the hook in a child of this process, which ends with a message where it does not do the same there.

    Nothing may have used the device before.
    """

    def call(trial: Trial) -> None:
        context.hook(hook)(*arguments)

    ended, said = in_a_child(context, Trial(context, hook), call, _FORK_LIMIT)
    if ended == "fail":
        raise SystemExit(f"in a child that was forked before the device was used, {said}")


@contextlib.contextmanager
def _returning(hook: str) -> Iterator[None]:
    """End the process with a message where the block takes too long."""

    def give_up(*rest: object) -> None:
        raise SystemExit(f"{hook}() did not return within {_LIMIT} s when it was called while it ran")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
