"""Names of the contract that are going away, and what to write instead.

Nothing goes within a major version, so this list tells the authors of plugins early. A plugin that uses such a
name keeps working until the major version that drops it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Going:
    """One name that is going away."""

    what: Literal["hook", "argument", "key", "capability"]
    name: str  # an argument as "hook.argument"
    since: str  # the contract version that says so
    instead: str  # what to write, as the end of a sentence: "implement act() instead"


GOING: tuple[Going, ...] = ()
