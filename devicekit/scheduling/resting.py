"""How long a scheduler has nothing to do, so that whoever drives it can sleep instead of spin."""

from __future__ import annotations

from devicekit.scheduling.state import SchedulerState
from devicekit.scheduling.verbs.control import Control

LOOK = 0.002  # seconds between looks at what others do: copies, broadcasts, compilations


def idle_seconds(state: SchedulerState, control: Control) -> float | None:
    """Seconds until a step can do something, if nothing is posted; 0: now, ``None``: never.

    The same while paused as while there is nothing to run: a paused scheduler need not spin.
    """
    if state.may_run and (len(state.running) or state.prefilling or (state.admitting and len(state.waiting))):
        return 0.0
    if control.pending or any(map(state.pending, state.participants)):
        return LOOK
    due = [state.requests[identity].deadline for identity in state.timed]
    # A pause cannot end by itself while something holds generation, and letting go of that is posted.
    if not state.holds:
        due.append(state.continue_at)
    times = [one for one in due if one is not None]
    if not times:
        return None
    return max(0.0, min(times) - state.clock.now())
