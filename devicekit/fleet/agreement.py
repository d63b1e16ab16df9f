"""Whether engines can be one fleet: different processes, of one model, with keys and values of one page size."""

from __future__ import annotations

from collections.abc import Sequence

from devicekit.fleet.outcomes import MemberOutcome, MemberView


def problems(views: Sequence[MemberView]) -> list[MemberOutcome]:
    """What prevents engines from being one fleet: an outcome for each, a success where nothing does."""
    found: list[MemberOutcome] = []
    instances: dict[str, str] = {}
    kinds = [one.kind for one in views if one.reachable]
    common = max(kinds, key=kinds.count) if kinds else ()
    for one in views:
        problem = ""
        twin = instances.get(one.instance) if one.instance is not None else None
        if not one.reachable:
            problem = one.message or "no answer"
        elif twin is not None:
            problem = f"is the same engine as {twin}"
        elif one.kind != common:
            odd = ", ".join(sorted(set(one.kind) - set(common)))
            usual = ", ".join(sorted(set(common) - set(one.kind)))
            problem = f"serves another model than the others, or in other pages: {odd}, not {usual}"
        elif one.weight_version is None:
            problem = "does not say which weights it has"
        elif one.status in ("failed", "stalled"):
            problem = f"is {one.status}"
        if one.instance is not None:
            instances.setdefault(one.instance, one.member)
        found.append(MemberOutcome(one.member, not problem, problem))
    return found


def notes(views: Sequence[MemberView]) -> tuple[str, ...]:
    """What prevents no verb, and should be known."""
    found: list[str] = []
    versions = sorted({str(one.weight_version) for one in views if one.serving})
    if len(versions) > 1:
        found.append(f"Different weights are served now: {', '.join(versions)}.")
    builds = sorted({one.build for one in views if one.build is not None})
    if len(builds) > 1:
        found.append(f"The engines are of different versions of devicekit: {', '.join(builds)}.")
    eager = [one.member for one in views if one.waits_after_start is False]
    if eager:
        shown = ", ".join(eager[:3]) + (f" and {len(eager) - 3} more" if len(eager) > 3 else "")
        found.append(
            f"Started anew, {shown} would serve at once what they start with: --await-fleet is missing."
        )
    return tuple(found)
