"""The rule book: every requirement, its identity and the function that decides it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from devicekit_conformance.outcomes import Level

if TYPE_CHECKING:
    from devicekit_conformance.context import Context

Check = Callable[["Context"], None]

PROFILES: Mapping[str, str] = MappingProxyType(
    {
        "core": "It loads, says what it is, and leaves the process as it found it.",
        "memory": "Its statistics are true, and its cache gives back what it says.",
        "streams": "Work is ordered, waited for and measured as asked.",
        "host": "Pinned memory and copies behave as claimed.",
        "processes": "Forking, spawning, exiting and sharing are safe.",
        "operators": "Every operator that an engine sends to it gives what the host gives.",
        "engine": "An engine runs on it, and on what is left of it when hooks are missing or misbehave.",
        "hardware": "What only a machine with several devices and processes can show.",
    }
)
DEFAULT_PROFILES = tuple(name for name in PROFILES if name != "hardware")

# The breach of such a sentence is lost or foreign data, a race or a hang: no reason excuses it.
_GUARDS_DATA = re.compile(
    r"\b(intact|in use|data|lost|contents|overwrite|wait|waits|replay|before (all|its) work|tokens|"
    r"another device|stay valid|MUST return on)\b"
)
_ID = re.compile(r"DK-[A-Z]+-\d{3}")
_FIRST = ("DK-LOAD-001",)  # nothing can be said of a backend that does not load


@dataclass(frozen=True)
class Requirement:
    """One rule. ``sentence`` is normative; ``why`` is what follows it in the check's docstring."""

    id: str
    level: Level
    profile: str
    sentence: str
    why: str
    check: Check
    hooks: tuple[str, ...] = ()  # not applicable where the backend lacks one
    capabilities: tuple[str, ...] = ()  # not applicable where one is not claimed
    after: tuple[str, ...] = ()  # blocked where one of these failed
    isolated: float | None = None  # seconds, in a process of its own in which nothing has happened yet
    fresh: bool = False  # that process has not imported torch either
    device: bool = True  # needs a device
    min_devices: int = 1
    unwaivable: bool = False  # data loss, a silent race or a hang: no reason excuses it
    every: bool = False  # tries each hook in turn, those of later contracts included
    since: str = "1.0"


_rules: dict[str, Requirement] = {}


def requirement(
    id: str,
    level: Level = Level.MUST,
    *,
    profile: str,
    hooks: Sequence[str] = (),
    capabilities: Sequence[str] = (),
    after: Sequence[str] = (),
    isolated: float | None = None,
    fresh: bool = False,
    device: bool = True,
    min_devices: int = 1,
    unwaivable: bool = False,
    every: bool = False,
    since: str = "1.0",
) -> Callable[[Check], Check]:
    """Enter a check into the rule book.

    The first paragraph of the check's docstring is the requirement: one sentence with MUST, SHOULD or MAY, the
    word of its level. Ids are never used again, not even after a requirement is withdrawn.

    Raises:
        ValueError: the id is malformed or taken, or the docstring does not state the requirement.
    """

    def enter(check: Check) -> Check:
        sentence, _, why = (inspect.getdoc(check) or "").partition("\n\n")
        sentence = " ".join(sentence.split())
        if not _ID.fullmatch(id) or id in _rules:
            raise ValueError(f"{id!r} is not a new requirement id of the form DK-AREA-000.")
        if level.value not in sentence or not sentence.endswith("."):
            raise ValueError(f"The docstring of {id} must begin with one sentence that says {level.value}.")
        if profile not in PROFILES:
            raise ValueError(f"{id} is in a profile that does not exist: {profile!r}.")
        _rules[id] = Requirement(
            id=id,
            level=level,
            profile=profile,
            sentence=sentence,
            why=" ".join(why.split()),
            check=check,
            hooks=tuple(hooks),
            capabilities=tuple(capabilities),
            after=tuple(dict.fromkeys((*_FIRST, *after))) if id not in _FIRST else (),
            isolated=isolated,
            fresh=fresh,
            device=device,
            min_devices=min_devices,
            unwaivable=unwaivable or (level is Level.MUST and _GUARDS_DATA.search(sentence) is not None),
            every=every,
            since=since,
        )
        return check

    return enter


def rulebook() -> Mapping[str, Requirement]:
    """Every requirement by id, each after its prerequisites.

    Raises:
        ValueError: a prerequisite does not exist, or requirements wait for each other.
    """
    from devicekit_conformance import rules

    for module in pkgutil.iter_modules(rules.__path__):
        importlib.import_module(f"{rules.__name__}.{module.name}")
    ordered: dict[str, Requirement] = {}
    waiting: set[str] = set()

    def place(id: str, asked_by: str) -> None:
        if id in ordered:
            return
        if id not in _rules:
            raise ValueError(f"{asked_by} comes after {id}, which does not exist.")
        if id in waiting:
            raise ValueError(f"{id} and {asked_by} wait for each other.")
        waiting.add(id)
        for earlier in _rules[id].after:
            place(earlier, id)
        ordered[id] = _rules[id]

    for id in sorted(_rules, key=lambda id: (list(PROFILES).index(_rules[id].profile), id)):
        place(id, id)
    return MappingProxyType(ordered)
