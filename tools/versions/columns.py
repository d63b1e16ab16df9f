"""The combinations of versions that are claimed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

SHORT = (
    "tests/runners",
    "tests/text",
    "tests/registry",
    "tests/testing",
    "tests/plugins",
    "tests/test_equality.py",
    "tests/test_generation.py",
    "tests/test_opening.py",
    "tests/test_logprobs.py",
    "tests/conformance/test_pytest_doors.py",
)
"""Where another library's version shows: models, tokenizers, plugins, torch's backends, pytest's doors."""


@dataclass(frozen=True, slots=True)
class Column:
    """One combination. What is not pinned is the newest there is, or with ``lowest`` the oldest claimed."""

    name: str
    python: str
    why: str
    pins: Mapping[str, str] = field(default_factory=dict)
    lowest: bool = False

    @property
    def constraints(self) -> str:
        """The pins as a constraint file."""
        return "".join(f"{package}=={version}\n" for package, version in sorted(self.pins.items()))


def _column(name: str, python: str, why: str, *, lowest: bool = False, **pins: str) -> Column:
    return Column(name, python, why, MappingProxyType(pins), lowest)


COLUMNS = (
    _column("oldest", "3.10", "every lower bound of every distribution", lowest=True),
    _column(
        "torch-2.9", "3.11", "a torch before the simulated accelerator", torch="2.9.1", transformers="5.23.0"
    ),
    _column("device", "3.12", "what machines with accelerators have", torch="2.11.0", transformers="5.17.0"),
    _column("transformers-5.17", "3.11", "the oldest transformers", torch="2.13.0", transformers="5.17.0"),
    _column(
        "development", "3.11", "what development uses", torch="2.13.0", transformers="5.23.0", numpy="2.4.6"
    ),
    _column("transformers-5.24", "3.11", "the newest transformers", torch="2.13.0", transformers="5.24.0"),
    _column("newest", "3.13", "the newest of everything"),
    _column("python-3.14", "3.14", "the newest Python"),
)
