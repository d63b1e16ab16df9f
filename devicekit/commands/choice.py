"""The choice of a backend in words, with what is not on this machine in one line."""

from __future__ import annotations

from devicekit.contract.errors import IncompatibleBackend
from devicekit.contract.text import shown
from devicekit.registry.selection import CandidateReport, Policy, Selection, Verdict


def choice_text(selection: Selection) -> str:
    """As `Selection.explain`; backends without hardware here, and those that were not asked, share a line each."""
    asked = (
        "nothing was asked for" if selection.request is None else f"{shown(selection.request)} was asked for"
    )
    lines = [f"{selection.backend.label} was chosen: {asked}, policy {selection.policy.value}."]
    folded = {"not on this machine": _absent(selection), "not tried": _of(selection, Verdict.NOT_TRIED)}
    hidden = {id(one) for reports in folded.values() for one in reports}
    lines += [
        f"  {one.name}: {one.verdict.value}: {one.reason}"
        for one in selection.candidates
        if id(one) not in hidden and one.verdict is not Verdict.CHOSEN
    ]
    lines += [
        f"  {title}: {', '.join(one.name for one in reports)}" for title, reports in folded.items() if reports
    ]
    if any(folded.values()):
        lines[-1] += " (devicekit info --all says why)"
    return "\n".join([*lines, *(f"  note: {note}" for note in selection.notes)])


def _of(selection: Selection, verdict: Verdict) -> list[CandidateReport]:
    return [one for one in selection.candidates if one.verdict is verdict]


def _absent(selection: Selection) -> list[CandidateReport]:
    """Those that found no hardware, or lack their vendor's package where the policy saw no hardware for them."""
    lacking = [
        one
        for one in _of(selection, Verdict.FAILED)
        if selection.policy is Policy.MATCHING and isinstance(one.error, IncompatibleBackend)
    ]
    return [*_of(selection, Verdict.NO_HARDWARE), *lacking]
