"""A hook that is called while a graph is captured: it answers or refuses, and leaves all else as it is."""

from __future__ import annotations

import contextlib
from typing import Any

from devicekit_conformance import frozen_contract
from devicekit_conformance.calling import arguments_for
from devicekit_conformance.printing import printed
from devicekit_conformance.repeated import within
from devicekit_conformance.surroundings import Surroundings
from devicekit_conformance.trial import Trial

__all__ = ["while_capturing"]


_OF_A_CAPTURE = frozenset({"is_capturing", "current_index"})  # whose answers may be others then


def while_capturing(trial: Trial) -> None:
    """Call the hook while its own device captures, and while another one does.

    Only hooks that look or release are called: what orders work may end a capture. Where the hook refuses, it
    leaves devices and streams as they are, as after any call that raised; where it answers, it says what it says
    otherwise.
    """
    spec = frozen_contract.hook(trial.hook)
    releases = spec.missing is frozen_contract.Missing.DO_NOTHING_AND_SAY_SO
    if not (spec.only_looks or releases) or not spec.harmless or trial.hook in _OF_A_CAPTURE:
        return
    if not (trial.ctx.claims("graphs") and trial.has("create_graph")):
        return
    for index in (*trial.others[:1], trial.index):
        for current in (index, *(one for one in range(min(trial.count, 2)) if one != index)):
            told = f"while device {index} captures a graph and device {current} is current"
            _while_it_captures(within(trial, told), index, current)


def _while_it_captures(trial: Trial, index: int, current: int) -> None:
    arguments = arguments_for(trial)
    if arguments is None:
        return
    function = trial.ctx.raw_hook(trial.hook)

    def ask() -> object:
        return repr(printed(function(*arguments))) if frozen_contract.hook(trial.hook).only_looks else None

    with trial.current(index):
        graph, block = trial.other("create_graph", index), trial.filled(4096, 1, index)
        before = {ask() for _ in range(2)}
        found: list[object] = []
        changed: list[str] = []
        with contextlib.suppress(Exception), graph.capture():
            block.add_(1)
            with trial.current(current):
                around = Surroundings(trial.ctx, "", index, thorough=False)
                with contextlib.suppress(Exception):
                    found.append(function(*arguments))
                changed = around.changes()
            found[:] = [repr(printed(one)) for one in found]
        graph.reset()
        after = {ask() for _ in range(2)}
    trial.expect(not changed, "; ".join(changed[:3]))
    looks = frozen_contract.hook(trial.hook).only_looks
    still = looks and len(before) == 1 and before == after  # or the answer moves by itself
    if still and found and index != trial.index:
        there: Any = found[0]
        trial.expect(there in before, f"it says {there:.160}, and otherwise {next(iter(before)):.160}")
