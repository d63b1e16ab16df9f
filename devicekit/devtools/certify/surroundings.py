"""Where and when a run took place: date, command, Python, packages, system. The device is told by the parts."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devicekit.registry.installed import installed_version

_PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "numpy", "pluggy", "packaging", "pytest",
    "pytest-xdist", "hypothesis", "psutil", "rich", "prometheus-client",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Facts about one run; ``None``: not installed, or unknown."""

    started: str
    command: str
    revision: str | None  # of the checkout, with "+" behind it if it was changed since
    python: str
    system: str
    cores: int | None
    packages: Mapping[str, str | None]

    @classmethod
    def now(cls, arguments: Sequence[str]) -> Surroundings:
        """Those of this process."""
        return cls(
            started=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            command=without_paths(" ".join(["python -m devicekit.devtools.certify", *arguments])),
            revision=_revision(),
            python=platform.python_version(),
            system=f"{platform.system()} {platform.machine()}",
            cores=os.cpu_count(),
            packages={name: installed_version(name) for name in _PACKAGES},
        )


def without_paths(text: str, *more: Path) -> str:
    """The text without where this machine keeps things: a page of results is read elsewhere."""
    places = [(str(one), "…") for one in more]
    places += [(str(_checkout()), "."), (sys.prefix, "<python>"), (sys.base_prefix, "<python>")]
    places.append((str(Path.home()), "~"))
    for place, short in places:
        text = text.replace(place, short)
    return text


def _checkout() -> Path:
    return Path(__file__).resolve().parents[3]


def _revision() -> str | None:
    try:
        asked = [
            "git",
            "-C",
            str(_checkout()),
            "describe",
            "--always",
            "--dirty=+",
            "--abbrev=10",
            "--exclude=*",
        ]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
