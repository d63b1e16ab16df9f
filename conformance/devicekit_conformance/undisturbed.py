"""Calls a hook in a process of its own, which ends where a call does not leave it as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from devicekit_conformance.context import Context
from devicekit_conformance.snapshot import captured_output
from devicekit_conformance.surroundings import Surroundings
from devicekit_conformance.trying import warm_up

__all__ = ["undisturbed"]


def undisturbed(context: Context, hook: str) -> Callable[..., Any]:
    """The hook, each call of which ends the process with a message where it changed something or wrote anything.

    Opens the backend, whose classes the arguments may need, while nothing has used the device.
    """
    context.device_count  # noqa: B018
    warm_up()
    context.first_use  # noqa: B018
    call = context.hook(hook)

    def checked(*arguments: object) -> Any:
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
