"""When a release point empties the cache: the points, their policies, and how a policy is written.

A policy is written ``always``, ``never``, ``on_request:yes``, ``on_request:no``, ``interval:30`` (seconds) or
``when_reclaimable:1GiB`` (bytes, or KiB, MiB, GiB, TiB). ``, every:5`` after any of them keeps two releases at
least five seconds apart.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

from devicekit.contract.errors import ConfigurationError
from devicekit.contract.text import shown
from devicekit.ranges import OutOfRange, finite, whole

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]*)")
_ANSWERS = {"yes": True, "no": False}
_FORMS = {
    "always": "always",
    "never": "never",
    "on_request": "on_request:yes or on_request:no",
    "interval": "interval:SECONDS",
    "when_reclaimable": "when_reclaimable:SIZE",
}


class ReleasePoint(str, enum.Enum):
    """The places where emptying can help."""

    FLUSH = "flush"
    WEIGHT_UPDATE = "weight_update"
    CONTINUE = "continue"
    IDLE = "idle"
    OUT_OF_MEMORY = "out_of_memory"
    REQUEST_FAILED = "request_failed"  # for any other reason
    COMPONENT = "component"
    MEMORY_OCCUPATION = "memory_occupation"
    AVAILABLE_MEMORY = "available_memory"


_SHOWN = 300  # characters of what was written, in a message


class InvalidReleaseSetting(ConfigurationError):
    """A setting of a release point that cannot be honoured.

    ``source`` says where it stands (an environment variable, or a file and key; empty in code), ``value`` what
    stands there.
    """

    def __init__(self, problem: str, *, source: str = "", value: str = "") -> None:
        super().__init__(problem)
        self.source = source
        self.value = value

    def __str__(self) -> str:
        problem = super().__str__()
        return f"{self.source[:_SHOWN]}={self.value[:_SHOWN]!r}: {problem}" if self.source else problem

    def at(self, source: str, value: str) -> InvalidReleaseSetting:
        """The same error, with where the setting stands."""
        return InvalidReleaseSetting(super().__str__(), source=source, value=value)


@dataclass(frozen=True, slots=True)
class ReleasePolicy:
    """When a point empties. Make one with `always`, `never`, `on_request`, `interval` or `when_reclaimable`."""

    kind: str
    default: bool = False  # on_request: what happens when the request does not say
    seconds: float = 0.0  # interval: at least this long between two
    bytes: int = 0  # when_reclaimable: at least this much to gain
    minimum_interval: float = 0.0  # seconds between two releases, whatever else holds

    def __post_init__(self) -> None:
        if self.kind not in _FORMS:
            raise _unknown(self.kind)
        try:
            if self.kind == "interval":
                finite("A release interval in seconds", self.seconds, above=0)
            if self.kind == "when_reclaimable":
                whole("A size to reclaim in bytes", self.bytes, least=1, most=2**63 - 1)
            finite("A minimum interval in seconds", self.minimum_interval, least=0)
        except OutOfRange as error:
            raise InvalidReleaseSetting(f"{error}.") from None

    def at_most_every(self, seconds: float) -> ReleasePolicy:
        """This policy, with at least ``seconds`` between two releases.

        Raises:
            InvalidReleaseSetting: ``seconds`` is not a positive number.
        """
        try:
            finite("A minimum interval in seconds", seconds, above=0)
        except OutOfRange as error:
            raise InvalidReleaseSetting(f"{error}.") from None
        return dataclasses.replace(self, minimum_interval=seconds)

    def __str__(self) -> str:
        arguments = {
            "on_request": ":yes" if self.default else ":no",
            "interval": f":{self.seconds:g}",
            "when_reclaimable": f":{self.bytes}",
        }
        every = f", every:{self.minimum_interval:g}" if self.minimum_interval else ""
        return self.kind + arguments.get(self.kind, "") + every


def always() -> ReleasePolicy:
    """Empty each time."""
    return ReleasePolicy("always")


def never() -> ReleasePolicy:
    """Do not empty, whatever a request says."""
    return ReleasePolicy("never")


def on_request(*, default: bool) -> ReleasePolicy:
    """Do as the request says; ``default`` where it does not say."""
    return ReleasePolicy("on_request", default=default)


def interval(seconds: float) -> ReleasePolicy:
    """Empty when more than ``seconds`` have passed since the last time, or since the points were made.

    Raises:
        InvalidReleaseSetting: ``seconds`` is not a positive number.
    """
    return ReleasePolicy("interval", seconds=seconds)


def when_reclaimable(size: int) -> ReleasePolicy:
    """Empty when at least ``size`` bytes would come back; where the backend cannot tell, do not.

    Raises:
        InvalidReleaseSetting: ``size`` is not a positive whole number.
    """
    return ReleasePolicy("when_reclaimable", bytes=size)


DEFAULT_POLICIES: Mapping[ReleasePoint, ReleasePolicy] = MappingProxyType(
    {
        ReleasePoint.FLUSH: on_request(default=True),
        ReleasePoint.WEIGHT_UPDATE: on_request(default=False),
        # Updating in place never flushes: without this, reserved memory grows with every update until it fails.
        ReleasePoint.CONTINUE: on_request(default=True),
        ReleasePoint.IDLE: never(),
        ReleasePoint.OUT_OF_MEMORY: always(),
        ReleasePoint.REQUEST_FAILED: on_request(default=False),
        ReleasePoint.COMPONENT: on_request(default=False),
        ReleasePoint.MEMORY_OCCUPATION: always(),
        ReleasePoint.AVAILABLE_MEMORY: on_request(default=False),
    }
)
"""What holds at each point unless the user says otherwise."""


def parse_policy(text: str) -> ReleasePolicy:
    """Read a policy as it is written in the environment or a file.

    Raises:
        InvalidReleaseSetting: the text is none.
    """
    head, *options = (part.strip() for part in text.split(","))
    kind, colon, argument = (part.strip() for part in head.partition(":"))
    policy = _policy(kind, argument if colon else None)
    for option in options:
        name, _, value = (part.strip() for part in option.partition(":"))
        if name != "every":
            raise InvalidReleaseSetting(f"{shown(option)} is no option of a policy; there is every:SECONDS.")
        policy = policy.at_most_every(_seconds(value))
    return policy


def _policy(kind: str, argument: str | None) -> ReleasePolicy:
    if kind in ("always", "never"):
        if argument is not None:
            raise InvalidReleaseSetting(f"{kind} takes no argument.")
        return always() if kind == "always" else never()
    if kind == "on_request":
        if argument not in _ANSWERS:
            raise InvalidReleaseSetting("Write on_request:yes or on_request:no.")
        return on_request(default=_ANSWERS[argument])
    if kind == "interval":
        return interval(_seconds(argument or ""))
    if kind == "when_reclaimable":
        return when_reclaimable(_size(argument or ""))
    raise _unknown(kind)


def _unknown(kind: str) -> InvalidReleaseSetting:
    return InvalidReleaseSetting(
        f"{shown(kind)} is no release policy; there are {', '.join(_FORMS.values())}."
    )


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidReleaseSetting(f"{shown(text)} is not a number of seconds.") from None


def _size(text: str) -> int:
    matched = _SIZE.fullmatch(text)
    if matched is None or matched["unit"].upper() not in _UNITS:
        raise InvalidReleaseSetting(
            f"{shown(text)} is not a size; write bytes, or for example 512MiB or 1GiB."
        )
    return int(Decimal(matched["number"]) * _UNITS[matched["unit"].upper()])
