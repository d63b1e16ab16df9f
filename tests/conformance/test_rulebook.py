"""The rule book: what a requirement must say of itself, and what the suite must not cost."""

from __future__ import annotations

import subprocess
import sys

import pytest
from packaging.version import Version

from devicekit.contract import CAPABILITIES, HOOKS
from devicekit_conformance import frozen_contract
from devicekit_conformance.context import Context
from devicekit_conformance.outcomes import Level
from devicekit_conformance.rulebook import PROFILES, requirement, rulebook


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
def test_what_every_environment_imports_is_light(module: str) -> None:
    heavy = "[name for name in ('torch', 'numpy', 'devicekit_cpu') if name in sys.modules]"
    assert _printed(f"import {module}, sys; print({heavy})") == "[]"


def test_the_rule_book_needs_no_torch() -> None:
    code = "import sys; from devicekit_conformance.rulebook import rulebook; print(len(rulebook()) > 100)"
    assert _printed(f"{code}; print('torch' in sys.modules)") == "True\nFalse"


def _printed(code: str) -> str:
    """By an interpreter that has imported nothing."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
