"""The outcome of a verb on each engine, and on the fleet as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from devicekit.fleet.endpoint import Answer

_LONGEST = 4096  # characters of what an engine says of itself: a path may have so many
_KIND = ("model_type", "architectures", "vocab_size", "max_context_length", "page_size")


@dataclass(frozen=True, slots=True)
class MemberOutcome:
    """The outcome of a verb on one engine."""

    member: str
    success: bool
    message: str = ""
    status: int | None = None  # HTTP; None: no answer came, and what it did is unknown
    document: Mapping[str, object] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, member: str, answer: Answer) -> MemberOutcome:
        """The outcome that an answer tells of."""
        return cls(member, answer.success, answer.message, answer.status, answer.document)


@dataclass(frozen=True, slots=True)
class MemberView:
    """What an engine says of itself. Every field but ``member`` is None where it did not say."""

    member: str
    reachable: bool
    message: str = ""  # why not
    instance: str | None = None  # another after every start
    weight_version: str | None = None
    status: str | None = None  # ok, degraded, paused, draining, drained, stopping, stalled, failed
    awaits_fleet: bool | None = None
    prepared_update: str | None = None
    model_path: str | None = None  # where its weights came from
    kind: tuple[str, ...] = ()  # what engines of one fleet have in common
    build: str | None = None  # version of devicekit
    steered_by: str | None = None  # who has claimed it
    waits_after_start: bool | None = None  # whether it serves nothing after a start until the fleet says so

    @classmethod
    def of(cls, outcome: MemberOutcome) -> MemberView:
        """Read the answer of ``/server_info``. A value of a wrong type, or longer than any, counts as not said."""
        if not outcome.success:
            return cls(outcome.member, False, outcome.message)
        seen = outcome.document
        return cls(
            outcome.member,
            True,
            instance=_text(seen.get("instance")),
            weight_version=_text(seen.get("weight_version")),
            status=_text(seen.get("status")),
            awaits_fleet=_flag(seen.get("awaits_fleet")),
            prepared_update=_text(seen.get("prepared_update")),
            model_path=_text(seen.get("model_path")),
            kind=tuple(f"{name}={str(seen.get(name))[:200]}" for name in _KIND),
            build=_text(seen.get("version")),
            steered_by=_text(seen.get("steered_by")),
            waits_after_start=_flag(seen.get("await_fleet")),
        )

    @property
    def serving(self) -> bool:
        """Whether the engine generates, as far as it says."""
        return self.status in ("ok", "degraded") and not self.awaits_fleet


@dataclass(frozen=True, slots=True)
class FleetReply:
    """The answer to one verb over the whole fleet: it succeeded where it did on every expected engine."""

    success: bool
    message: str
    outcomes: tuple[MemberOutcome, ...] = ()
    outcome: str = ""  # of updates: unchanged, updated, partial
    weight_version: str | None = None  # that the fleet has now; None: unknown, or several
    held: tuple[str, ...] = ()  # engines that are kept from generating
    notes: tuple[str, ...] = ()  # what should be known besides

    @classmethod
    def over(cls, verb: str, outcomes: Sequence[MemberOutcome]) -> FleetReply:
        """A verb that was sent to all."""
        failed = [one for one in outcomes if not one.success]
        return cls(not failed, summary(verb, outcomes), tuple(outcomes))


def still_waiting(outcomes: Sequence[MemberOutcome], views: Sequence[MemberView]) -> list[MemberOutcome]:
    """The outcomes, as failures for engines that say they still wait for their fleet's weights."""
    waiting = {one.member for one in views if one.awaits_fleet}
    message = "joined, and says that it generates nothing"
    return [
        MemberOutcome(one.member, False, message, one.status)
        if one.success and one.member in waiting
        else one
        for one in outcomes
    ]


def summary(verb: str, outcomes: Sequence[MemberOutcome]) -> str:
    """One sentence on a verb: how many did it, and the first that did not."""
    failed = [one for one in outcomes if not one.success]
    if not failed:
        return f"{verb}: done on all {len(outcomes)} engines."
    first = "; ".join(f"{one.member}: {one.message}" for one in failed[:3])
    more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
    return f"{verb}: failed on {len(failed)} of {len(outcomes)} engines ({first}{more})."


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and len(value) <= _LONGEST else None


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None
