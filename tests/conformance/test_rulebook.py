"""The rule book: what a requirement must say of itself, and what the suite must not cost."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.version import Version

from devicekit.contract import CAPABILITIES, HOOKS
from devicekit_conformance import frozen_contract
from devicekit_conformance.context import Context
from devicekit_conformance.outcomes import Level
from devicekit_conformance.rulebook import PROFILES, requirement, rulebook

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def test_every_requirement_comes_after_its_prerequisites() -> None:
    seen: set[str] = set()
    for rule in rulebook().values():
        assert seen.issuperset(rule.after), rule.id
        seen.add(rule.id)


def test_every_requirement_names_hooks_and_capabilities_that_exist() -> None:
    for rule in rulebook().values():
        assert frozen_contract.HOOKS.keys() >= set(rule.hooks), rule.id
        assert frozen_contract.CAPABILITIES.keys() >= set(rule.capabilities), rule.id


def test_every_profile_has_requirements() -> None:
    assert {rule.profile for rule in rulebook().values()} == set(PROFILES)


def test_what_loses_data_races_or_hangs_cannot_be_waived() -> None:
    unwaivable = {id for id, rule in rulebook().items() if rule.unwaivable}
    assert unwaivable >= {"DK-CACHE-002", "DK-CACHE-009", "DK-ORDER-001", "DK-ORDER-002", "DK-STREAM-007"}


@pytest.mark.parametrize(
    ("id", "docstring", "said"),
    [
        ("dk-core-1", "It MUST work.", "not a new requirement id"),
        ("DK-CORE-001", "It MUST work.", "not a new requirement id"),
        ("DK-TEST-001", "It works.", "one sentence that says MUST"),
        ("DK-TEST-001", "It MUST work", "one sentence that says MUST"),
        ("DK-TEST-001", "", "one sentence that says MUST"),
    ],
)
def test_a_requirement_that_does_not_state_itself_is_refused(id: str, docstring: str, said: str) -> None:
    rulebook()

    def check(ctx: Context) -> None:
        """Replaced below."""

    check.__doc__ = docstring
    with pytest.raises(ValueError, match=said):
        requirement(id, Level.MUST, profile="core")(check)


def test_the_frozen_contract_is_the_contract_of_its_version() -> None:
    """A difference is a change of the contract: write a new version of both, adapt neither to the other."""
    version = frozen_contract.CONTRACT
    hosts = {
        name: (spec.kind.value, spec.parameters_at(Version(version)))
        for name, spec in HOOKS.items()
        if spec.since <= version
    }
    ours = {name: (hook.missing.value, hook.parameters) for name, hook in frozen_contract.HOOKS.items()}
    assert ours == hosts
    assert dict(frozen_contract.CAPABILITIES) == {
        name: row.hooks for name, row in CAPABILITIES.items() if row.since <= version
    }


@pytest.mark.parametrize(
    "module", ["devicekit_conformance", "devicekit_conformance.plugin", "devicekit.conformance"]
)
def test_what_every_environment_imports_is_light(command: Command, tmp_path: Path, module: str) -> None:
    script = tmp_path / "light.py"
    script.write_text(
        f"import {module}, sys\n"
        "print([name for name in ('torch', 'numpy', 'devicekit_cpu') if name in sys.modules])\n"
    )
    done = command(folder=tmp_path, module="light")
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_the_rule_book_needs_no_torch(command: Command, tmp_path: Path) -> None:
    script = tmp_path / "rules.py"
    script.write_text(
        "import sys\nfrom devicekit_conformance.rulebook import rulebook\n"
        "print(len(rulebook()) > 100, 'torch' in sys.modules)\n"
    )
    assert command(folder=tmp_path, module="rules").stdout.strip() == "True False"
