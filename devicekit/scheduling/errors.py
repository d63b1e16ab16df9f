"""What a request or a control operation can be refused for.

::

    DeviceKitError
    └── SchedulingError
        ├── InvalidRequest      this request can never run; nothing was allocated for it
        ├── InvalidOperation    this control operation makes no sense as it stands
        ├── Conflict            it makes sense, but not in the state that things are in
        ├── RanksFailed         what all ranks did together failed on some of them
        ├── RankLost            a rank has ended, hangs or went its own way: this engine serves no more
        └── PassFailed          a forward pass failed on some ranks
"""

from __future__ import annotations

from devicekit.contract.errors import DeviceKitError
from devicekit.contract.records import ErrorKind


class SchedulingError(DeviceKitError):
    """A refusal by the scheduler."""


class InvalidRequest(SchedulingError):
    """This request can never run. Nothing was allocated for it, and no other request is affected."""


class InvalidOperation(SchedulingError):
    """This control operation makes no sense as it stands, whatever the scheduler is doing."""


class Conflict(SchedulingError):
    """This control operation makes sense, but not in the state that things are in. Nothing was changed."""


class RanksFailed(SchedulingError):
    """What all ranks did together failed on some of them; ``failures`` has the message of each, by rank."""

    def __init__(self, failures: dict[int, str]) -> None:
        super().__init__(describe_failures(failures))
        self.failures = failures

    def __reduce__(self) -> tuple[type[RanksFailed], tuple[dict[int, str]]]:
        return type(self), (self.failures,)


class RankLost(SchedulingError):
    """Ranks have ended, hang, or went their own way. ``ranks`` is empty where nobody can tell which."""

    def __init__(self, message: str, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks = ranks

    def __reduce__(self) -> tuple[type[RankLost], tuple[str, tuple[int, ...]]]:
        return type(self), (str(self), self.ranks)


class PassFailed(SchedulingError):
    """A forward pass failed on some ranks. ``kind`` is what that means for all of them."""

    def __init__(self, message: str, kind: ErrorKind | None) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[PassFailed], tuple[str, ErrorKind | None]]:
        return type(self), (str(self), self.kind)


def describe_failures(failures: dict[int, str]) -> str:
    """What failed where, in one line: ranks with the same message together."""
    ranks: dict[str, list[int]] = {}
    for rank, message in sorted(failures.items()):
        ranks.setdefault(message, []).append(rank)
    return "; ".join(
        f"rank{'s' if len(those) > 1 else ''} {', '.join(map(str, those))}: {message}"
        for message, those in ranks.items()
    )
