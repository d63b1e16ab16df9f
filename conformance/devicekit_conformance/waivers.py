"""The vendor's own list of known failures: each with a reason, a link and a date on which it ends.

::

    [[waiver]]
    requirement = "DK-STATE-012"
    reason = "the driver answers statistics over RPC, 2 ms"
    link = "https://tracker.example/123"
    expires = 2027-03-31
    strict = true        # default: when it no longer fails, the waiver itself is the failure
"""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from devicekit_conformance.outcomes import Result, Status
from devicekit_conformance.rulebook import rulebook
from devicekit_conformance.target import UsageError

_LONGEST = datetime.timedelta(days=400)  # a waiver is a promise to come back, not a way of living
_SHOWN = 100  # characters of what was written, in a message
_MOST_TOLD = 20  # faults in one message
_KEYS = frozenset({"requirement", "reason", "link", "expires", "strict"})


@dataclass(frozen=True)
class Waiver:
    """One known failure."""

    requirement: str
    reason: str
    link: str
    expires: datetime.date
    strict: bool = True

    def as_data(self) -> dict[str, str]:
        told = {"reason": self.reason, "link": self.link, "expires": self.expires.isoformat()}
        return told if self.strict else {**told, "strict": "false"}


@dataclass(frozen=True)
class Waivers:
    """A checked waiver file."""

    by_id: Mapping[str, Waiver] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, today: datetime.date | None = None) -> Waivers:
        """Read and check a waiver file.

        Raises:
            UsageError: the file is unreadable or wrong; the text lists every fault.
        """
        # devicekit is imported where it is needed, and by no process that only hands out work.
        from devicekit.documents import read_toml
        from devicekit.files import UnreadableFile

        try:
            document = read_toml(path)
        except UnreadableFile as error:
            raise UsageError(f"The waiver file cannot be read: {error}") from error
        problems: list[str] = [
            f"there is no table {key[:_SHOWN]!r}, only [[waiver]]" for key in document if key != "waiver"
        ]
        found: dict[str, Waiver] = {}
        entries = document.get("waiver", [])
        if not isinstance(entries, list):
            entries, problems = [], [*problems, "write [[waiver]], with two brackets"]
        for number, entry in enumerate(entries, 1):
            waiver, faults = _parse(entry, today or datetime.date.today())
            if waiver is not None and waiver.requirement in found:
                faults.append(f"{waiver.requirement} is waived twice")
            problems.extend(f"waiver {number}: {fault}" for fault in faults)
            if waiver is not None:
                found[waiver.requirement] = waiver
        if len(problems) > _MOST_TOLD:
            problems = [*problems[:_MOST_TOLD], f"and {len(problems) - _MOST_TOLD} more"]
        if problems:
            raise UsageError(
                f"The waiver file {path} is wrong:\n" + "\n".join(f"  - {one}" for one in problems)
            )
        return cls(found)

    def apply(self, result: Result) -> Result:
        """The result as it stands in the light of its waiver."""
        waiver = self.by_id.get(result.id)
        if waiver is None:
            return result
        data = waiver.as_data()
        if result.status in (Status.FAIL, Status.ERROR):
            return replace(result, status=Status.WAIVED, waiver=data)
        if result.status in (Status.PASS, Status.NOT_APPLICABLE) and waiver.strict:
            passes = "passes" if result.status is Status.PASS else "does not apply"
            message = f"it {passes} now: take the waiver away ({waiver.link})"
            return replace(result, status=Status.STALE_WAIVER, message=message, waiver=data)
        return result


def _parse(entry: object, today: datetime.date) -> tuple[Waiver | None, list[str]]:
    if not isinstance(entry, dict):
        return None, ["is not a table"]
    faults = [f"there is no key {key[:_SHOWN]!r}" for key in sorted(entry.keys() - _KEYS)]
    texts: dict[str, str] = {}
    for key in ("requirement", "reason", "link"):
        value = entry.get(key)
        if isinstance(value, str) and value.strip():
            texts[key] = value.strip()
        else:
            faults.append(f"{key} is required, a text that is not empty")
    expires = entry.get("expires")
    if not isinstance(expires, datetime.date) or isinstance(expires, datetime.datetime):
        faults.append("expires is required, a date such as 2027-03-31")
    elif expires < today:
        faults.append(f"{texts.get('requirement', 'it')[:_SHOWN]} expired on {expires}: fix it or renew it")
    elif expires - today > _LONGEST:
        faults.append(f"expires on {expires}, which is more than {_LONGEST.days} days away")
    strict = entry.get("strict", True)
    if not isinstance(strict, bool):
        faults.append("strict is true or false")
    if "link" in texts and not texts["link"].startswith(("https://", "http://")):
        faults.append("link must be a web address that says where this is being worked on")
    faults.extend(_rule_faults(texts.get("requirement")))
    if faults or not isinstance(expires, datetime.date):
        return None, faults
    return Waiver(texts["requirement"], texts["reason"], texts["link"], expires, bool(strict)), []


def _rule_faults(id: str | None) -> list[str]:
    if id is None:
        return []
    rule = rulebook().get(id)
    if rule is None:
        near = difflib.get_close_matches(id[:_SHOWN], rulebook(), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return [f"there is no requirement {id[:_SHOWN]!r}{hint}"]
    if rule.unwaivable:
        return [f"{id} cannot be waived: {rule.sentence}"]
    return []
