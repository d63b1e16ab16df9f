"""What an audit reports, and the rules it reports by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that portable code does not do."""

    id: str
    title: str
    instead: str  # what to write


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        rule.id: rule
        for rule in (
            Rule("DK000", "file cannot be audited", "mend the file: nothing in it was audited"),
            Rule("DK001", "vendor module", "a method of devicekit.Device"),
            Rule(
                "DK002", "vendor device literal", "device.torch_device, or leave the choice to get_device()"
            ),
            Rule("DK003", "move to a vendor's device", "tensor.to(device.torch_device)"),
            Rule(
                "DK004",
                "branch on a vendor",
                "device.supports(hook), or the record that answers the question",
            ),
            Rule("DK005", "vendor collective", "device.collective_backend()"),
            Rule("DK006", "vendor visible-devices variable", "device.visible_devices_variable()"),
            Rule("DK007", "vendor package", "a hook of the backend's plugin"),
            Rule(
                "DK008", "vendor allocator variable", "PYTORCH_ALLOC_CONF, which torch reads on every device"
            ),
            Rule("DK009", "waiver names no rule", "a rule of this list"),
            Rule(
                "DK010",
                "vendor environment variable",
                "set it where the process is started, or in the backend's plugin, and waive it there",
            ),
        )
    }
)
"""Every rule by its id."""

Place = tuple[int, int]  # line from 1, column from 0 in characters
Span = tuple[Place, Place]


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One place where code names a vendor."""

    path: str
    line: int  # from 1
    column: int  # from 1
    rule: str
    what: str  # the offending expression
    source: str  # its line, stripped
    instead: str = ""  # what to write here; empty: what the rule says
    changes: str = ""  # what behaves differently afterwards
    fix: str = ""  # "safe" or "unsafe": what `--fix` or `--unsafe-fixes` writes; empty: done by hand
    times: int = 1  # how often the file asks this question
    flag: str = ""  # the question, where all that ask it are one finding

    @property
    def advice(self) -> str:
        """What to write instead."""
        return self.instead or RULES[self.rule].instead


@dataclass(frozen=True, slots=True)
class Edit:
    """One expression to be replaced.

    ``parts`` are joined: text as it stands, and the source at a span, with the edits inside it made.
    """

    span: Span
    parts: tuple[str | Span, ...]
    safe: bool
    imports: tuple[str, ...] = ("devicekit",)  # modules that the new code names
    group: Span | None = None  # edits that are made together, or none of them


def in_whole_groups(chosen: Iterable[Edit], every: Iterable[Edit]) -> list[Edit]:
    """The ``chosen`` edits, without those of a group of which one was not chosen."""
    kept = list(chosen)
    missing = {one.group for one in set(every) - set(kept)} - {None}
    return [one for one in kept if one.group not in missing]
