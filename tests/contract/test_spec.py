from __future__ import annotations

import subprocess
import sys

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from devicekit.contract import CAPABILITIES, HOOKS, HookKind, hookimpl
from devicekit.contract.spec import collect, hook
from devicekit.contract.versions import CONTRACT_VERSION, SERVED_CONTRACTS, negotiate


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented_typed_and_dated(name):
    spec = HOOKS[name]
    assert spec.doc
    assert spec.declaration.startswith(f"{name}(")
    assert spec.returns != "<class 'inspect._empty'>"
    assert Version(spec.since) <= CONTRACT_VERSION
    assert "inspect._empty" not in spec.declaration


def test_a_hook_that_takes_an_index_takes_it_first():
    for spec in HOOKS.values():
        assert "index" not in spec.parameters[1:]


def test_a_releasing_hook_returns_nothing_because_the_device_answers_for_it():
    assert {spec.returns for spec in HOOKS.values() if spec.kind is HookKind.RELEASING} == {"None"}


def test_capabilities_rest_on_hooks_that_exist():
    assert {hook for capability in CAPABILITIES.values() for hook in capability.hooks} <= HOOKS.keys()


def test_an_appended_parameter_is_absent_from_the_contracts_before_it():
    class Spec:
        @hook(HookKind.ORDERING, "Test", added={"late": "1.2", "later": "1.3"})
        def act(self, index: int, late: int, later: int) -> None: ...

    act = collect(Spec)["act"]
    assert act.parameters_at(Version("1.0")) == ("index",)
    assert act.parameters_at(Version("1.2")) == ("index", "late")
    assert act.parameters_at(Version("1.3")) == act.parameters == ("index", "late", "later")


def test_the_host_serves_its_own_contract_first():
    assert SERVED_CONTRACTS[0] == CONTRACT_VERSION
    assert list(SERVED_CONTRACTS) == sorted(SERVED_CONTRACTS, reverse=True)
    assert {version.minor for version in SERVED_CONTRACTS} == set(range(CONTRACT_VERSION.minor + 1))
    assert {version.major for version in SERVED_CONTRACTS} == {CONTRACT_VERSION.major}


@pytest.mark.parametrize(
    ("accepted", "spoken"),
    [
        (">=1.0,<2", ("1.1", "1.0")),
        ("==1.0", ("1.0",)),
        ("==1.*", ("1.1", "1.0")),
        ("~=1.0", ("1.1", "1.0")),
        (">=2", ()),
        ("<1", ()),
        ("", ("1.1", "1.0")),
    ],
)
def test_only_contracts_inside_the_plugins_range_are_spoken(accepted, spoken):
    assert negotiate(SpecifierSet(accepted)) == tuple(map(Version, spoken))


def test_the_contract_imports_neither_torch_nor_anything_else_of_ours():
    script = (
        "import sys, devicekit.contract, devicekit.contract.environment\n"
        "ours = [name for name in sys.modules if name.startswith('devicekit.')]\n"
        "print([name for name in ours if not name.startswith('devicekit.contract')])\n"
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


def test_vendors_need_one_import():
    import devicekit

    assert devicekit.hookimpl is hookimpl
