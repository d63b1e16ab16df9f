"""What can become of a requirement, and what all of them together say of a backend."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


class Level(str, enum.Enum):
    """How binding a requirement is, as in RFC 2119. Only MUST decides the verdict."""

    MUST = "MUST"
    SHOULD = "SHOULD"
    MAY = "MAY"


class Status(str, enum.Enum):
    """What became of one requirement."""

    PASS = "pass"
    FAIL = "fail"
    NOT_APPLICABLE = "n/a"  # the backend does not claim, or does not implement, what is required
    NOT_RUN = "not-run"  # it applies and could not be decided here: no device, or left out
    BLOCKED = "blocked"  # a prerequisite failed, so that this would say nothing new
    WAIVED = "waived"  # it failed, and the vendor's waiver says why
    STALE_WAIVER = "stale-waiver"  # it is waived and does not fail
    ERROR = "error"  # the check itself broke


class Verdict(str, enum.Enum):
    """What the results say of the backend."""

    CONFORMANT = "conformant"
    CONFORMANT_WITH_WAIVERS = "conformant with waivers"
    INCOMPLETE = "incomplete"
    NON_CONFORMANT = "non-conformant"


class Tier(str, enum.Enum):
    """How much a conformant backend has shown."""

    NONE = "none"
    EXPERIMENTAL = "experimental"  # something is missing, waived or left out
    VERIFIED = "verified"  # every default profile, without a waiver, judged by the suite's own probe
    CERTIFIED = "certified"  # the hardware profile as well


EXIT_CODES: Mapping[Verdict, int] = {
    Verdict.CONFORMANT: 0,
    Verdict.CONFORMANT_WITH_WAIVERS: 0,
    Verdict.NON_CONFORMANT: 1,
    Verdict.INCOMPLETE: 6,
}
EXIT_INTERRUPTED = 2
EXIT_USAGE = 4

_BAD = frozenset({Status.FAIL, Status.ERROR, Status.BLOCKED})


@dataclass(frozen=True)
class Result:
    """What became of one requirement on one backend."""

    id: str
    level: Level
    profile: str
    status: Status
    message: str = ""
    seconds: float = 0.0
    waiver: Mapping[str, str] | None = None  # reason, link and expiry, where a waiver applied


GROUND = "core"  # the profile that every verdict rests on


def verdict_of(results: Iterable[Result], profiles: Iterable[str] = (GROUND,)) -> Verdict:
    """The verdict: any MUST that failed decides; then any that did not run; then any that is waived.

    Nothing good is said of a backend whose core was not judged: a profile alone is incomplete.
    """
    listed = list(results)
    must = {result.status for result in listed if result.level is Level.MUST}
    if must & _BAD or any(result.status is Status.STALE_WAIVER for result in listed):
        return Verdict.NON_CONFORMANT
    # A run in which nothing passed has shown nothing, whatever the reasons.
    if Status.NOT_RUN in must or Status.PASS not in must or GROUND not in set(profiles):
        return Verdict.INCOMPLETE
    return Verdict.CONFORMANT_WITH_WAIVERS if Status.WAIVED in must else Verdict.CONFORMANT


def tier_of(verdict: Verdict, profiles: Iterable[str], defaults: Iterable[str], foreign_probe: bool) -> Tier:
    """The tier that a verdict over ``profiles`` earns."""
    if verdict in (Verdict.NON_CONFORMANT, Verdict.INCOMPLETE):
        return Tier.NONE
    ran = set(profiles)
    if verdict is Verdict.CONFORMANT_WITH_WAIVERS or foreign_probe or not set(defaults) <= ran:
        return Tier.EXPERIMENTAL
    return Tier.CERTIFIED if "hardware" in ran else Tier.VERIFIED


def reasons_for_experimental(
    results: Iterable[Result], profiles: Iterable[str], defaults: Iterable[str], probe: str | None
) -> list[str]:
    """Why a conformant backend is no more than experimental, each as half a sentence; empty if it is more."""
    waived = [one.id for one in results if one.status is Status.WAIVED and one.level is Level.MUST]
    ran = set(profiles)
    missing = [name for name in defaults if name not in ran]
    reasons = [f"{', '.join(waived)} {'is' if len(waived) == 1 else 'are'} waived"] if waived else []
    reasons += [f"not judged: the profiles {', '.join(missing)}"] if missing else []
    return reasons + ([f"judged by a probe of its own, {probe}"] if probe is not None else [])


def counts_of(results: Iterable[Result]) -> dict[str, int]:
    """How many results have each status, every status listed."""
    found = Counter(result.status for result in results)
    return {status.value: found[status] for status in Status}
