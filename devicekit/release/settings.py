"""How a user sets release points: ``DEVICEKIT_RELEASE_*`` variables and a TOML file.

::

    [release]
    idle = "interval:30"
    component = "when_reclaimable:1GiB, every:5"
    dry_run = true

The file is the one that ``DEVICEKIT_RELEASE_FILE`` names. Code wins over the environment, the environment over the
file, and the file over the defaults.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from devicekit.contract.environment import check_environment
from devicekit.documents import read_toml
from devicekit.files import UnreadableFile
from devicekit.release.policy import InvalidReleaseSetting, ReleasePoint, ReleasePolicy, parse_policy

_PREFIX = "DEVICEKIT_RELEASE_"
_FILE, _DRY_RUN = f"{_PREFIX}FILE", f"{_PREFIX}DRY_RUN"
_SWITCH = {"1": True, "yes": True, "true": True, "0": False, "no": False, "false": False}


@dataclass(frozen=True, slots=True)
class ReleaseSettings:
    """Release points as set. A point without a setting has no policy here; so ``dry_run`` may be ``None``."""

    policies: Mapping[ReleasePoint, ReleasePolicy]
    dry_run: bool | None = None


def read_settings(
    environ: Mapping[str, str] | None = None, file: str | Path | None = None
) -> ReleaseSettings:
    """Read the file, then the environment over it.

    Args:
        environ: default: the process's.
        file: default: what ``DEVICEKIT_RELEASE_FILE`` names, if anything.

    Raises:
        InvalidReleaseSetting: a value cannot be honoured; it names the variable, or the file and key.
        ConfigurationError: a ``DEVICEKIT_*`` variable does not exist.
    """
    variables = os.environ if environ is None else environ
    check_environment(variables)
    path = file or variables.get(_FILE) or None
    found = ReleaseSettings({}) if path is None else _from_file(Path(path), given=file is not None)
    policies, dry_run = dict(found.policies), found.dry_run
    for point in ReleasePoint:
        name = _PREFIX + point.name
        if text := variables.get(name):
            policies[point] = _parse(text, name)
    if text := variables.get(_DRY_RUN):
        if text.lower() not in _SWITCH:
            raise InvalidReleaseSetting("Write yes or no.", source=_DRY_RUN, value=text)
        dry_run = _SWITCH[text.lower()]
    return ReleaseSettings(policies, dry_run)


def _from_file(path: Path, *, given: bool) -> ReleaseSettings:
    source = str(path) if given else _FILE
    try:
        document = read_toml(path)
    except UnreadableFile as error:
        raise InvalidReleaseSetting(str(error), source=source, value=str(path)) from error
    table = document.get("release", {})
    if not isinstance(table, dict):
        raise InvalidReleaseSetting("[release] is a table.", source=f"{path}: release", value=str(table))
    policies: dict[ReleasePoint, ReleasePolicy] = {}
    dry_run: bool | None = None
    for key, value in table.items():
        where = f"{path}: release.{key}"
        if key == "dry_run":
            if not isinstance(value, bool):
                raise InvalidReleaseSetting("Write true or false.", source=where, value=str(value))
            dry_run = value
        elif key not in {point.value for point in ReleasePoint}:
            known = ", ".join(point.value for point in ReleasePoint)
            raise InvalidReleaseSetting(
                f"There is no such release point; there are {known}.", source=where, value=str(value)
            )
        elif not isinstance(value, str):
            raise InvalidReleaseSetting("A policy is a string.", source=where, value=str(value))
        else:
            policies[ReleasePoint(key)] = _parse(value, where)
    return ReleaseSettings(policies, dry_run)


def _parse(text: str, source: str) -> ReleasePolicy:
    try:
        return parse_policy(text)
    except InvalidReleaseSetting as error:
        raise error.at(source, text) from None
