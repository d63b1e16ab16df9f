"""How long a scheduler has nothing to do, so that whoever drives it can sleep instead of spin."""

from __future__ import annotations

from devicekit.scheduling.state import SchedulerState
from devicekit.scheduling.verbs.control import Control

LOOK = 0.002  # seconds between looks at what others do: copies, broadcasts, compilations


def idle_seconds(state: SchedulerState, control: Control) -> float | None:
    """Seconds until a step can do something, if nothing is posted; 0: now, ``None``: never.

    The same while paused as while there is nothing to run: a paused scheduler need not spin.
    """
    requests, gate = state.requests, state.gate
    if gate.may_run and (requests.holding_kv or (gate.admitting and len(requests.waiting))):
        return 0.0
    if control.pending or any(map(state.participants.pending, state.participants)):
        return LOOK
    # A pause cannot end by itself while something holds generation, and letting go of that is posted.
    due = (state.deadlines.next, None if gate.holds else gate.continue_at)
    times = [one for one in due if one is not None]
    if not times:
        return None
    return max(0.0, min(times) - state.clock.now())
