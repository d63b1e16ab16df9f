"""What kind of engine a run is of: sizes, policies, kind of model and of device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from devicekit.memory.paired_sizing import least_window_pages
from devicekit.release import ReleasePoint, ReleasePolicy, always, interval, never, when_reclaimable
from devicekit.scheduling.waiting import POLICIES
from tests.soak.drawing import Draw

SIMULATED = 30  # one run in so many is on the simulated accelerator, which is slow
_RELEASES: list[dict[ReleasePoint, ReleasePolicy]] = [
    {},
    {ReleasePoint.IDLE: interval(1.0), ReleasePoint.FLUSH: always()},
    {
        ReleasePoint.CONTINUE: when_reclaimable(1 << 12),
        ReleasePoint.WEIGHT_UPDATE: always().at_most_every(2.0),
    },
    {ReleasePoint.FLUSH: never(), ReleasePoint.OUT_OF_MEMORY: never()},
]


@dataclass(slots=True)
class Make:
    """What was chosen for this engine."""

    simulated: bool
    page_size: int
    pages: int
    max_running: int
    max_batch_tokens: int
    policy: str
    caching: bool
    window: int | None
    partial: int | None  # the window of the last layer, where the others have none
    window_pages: int | None  # pages of that layer; None: as many as the others have
    recurrent: bool
    snapshots: int  # of recurrent states, kept for cached prefixes
    eos: frozenset[int]
    positions: int
    draft: bool
    host: int
    late: bool
    checked: bool
    conservativeness: float
    rollback: bool
    releases: int
    quiet: (
        bool  # operators let requests be for a while: what is cached is used, and forgotten for want of room
    )
    known_bytes: bool  # of every token: requests with stop strings are not looked at with each
    cut_short: bool  # at the end requests are aborted, and do not run to theirs

    @classmethod
    def of(cls, draw: Draw) -> Make:
        size = draw.pick((1, 2, 3, 4, 4, 4, 16, 64))
        recurrent = draw.number(0, 5) == 5
        pages = max(2, draw.pick((48, 48, 80, 160)) // size)
        host = 0 if recurrent else draw.pick((0, 0, 2, pages, 3 * pages))
        budget = draw.pick((3, 8, 24, 24, 64))
        partial = draw.pick((None, None, None, 1, 6, 20))
        window_pages = None
        if partial is not None and not recurrent and not host and draw.number(0, 3):
            least = min(pages, least_window_pages(partial, size, budget))
            window_pages = draw.number(least, max(least, pages))
        return cls(
            simulated=draw.number(1, SIMULATED) == SIMULATED,
            page_size=size,
            pages=pages,
            max_running=draw.pick((1, 2, 3, 5, 5, 8)),
            max_batch_tokens=budget,
            policy=draw.pick(POLICIES),
            caching=host > 0 or draw.number(0, 3) > 0,
            window=draw.pick((None, None, 1, 7, 20)) if partial is None else None,
            partial=partial,
            window_pages=window_pages,
            recurrent=recurrent,
            snapshots=draw.pick((0, 3, 8, 8)) if recurrent else 0,
            eos=draw.pick((frozenset(), frozenset({5}), frozenset(range(3, 997, 23)))),
            positions=draw.pick((4096, 4096, 60)),
            draft=draw.number(0, 3) == 3,
            host=host,
            late=draw.number(0, 3) > 0,
            checked=draw.number(0, 3) == 3,
            conservativeness=draw.pick((0.05, 0.3, 1.0)),
            rollback=draw.number(0, 2) > 0,
            releases=draw.number(0, len(_RELEASES) - 1),
            quiet=draw.number(0, 2) == 2 or ((host > 0 or recurrent) and draw.number(0, 1) == 1),
            cut_short=draw.number(0, 2) > 0,
            known_bytes=draw.number(0, 1) > 0,
        )

    @property
    def policies(self) -> Mapping[ReleasePoint, ReleasePolicy]:
        """When the allocator's cache is emptied."""
        return _RELEASES[self.releases]
