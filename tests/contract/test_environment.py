from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import devicekit
from devicekit.contract.environment import VARIABLES, VARIABLES_OF_OTHERS, check_environment, shown
from devicekit.contract.errors import ConfigurationError


def test_the_variables_that_exist_and_those_of_others_are_let_through():
    check_environment(dict.fromkeys(VARIABLES, "x") | {"PATH": "/", "DEVICEKIT_CONFORMANCE_BACKEND": "npu"})


def test_a_misspelt_variable_is_answered_with_the_nearest():
    with pytest.raises(ConfigurationError, match=r"_BACKENT does not exist\. Did you mean DEVICEKIT_BACKEND"):
        check_environment({"DEVICEKIT_BACKENT": "npu"})


def test_a_variable_like_no_other_is_answered_with_the_list():
    with pytest.raises(ConfigurationError) as caught:
        check_environment({"DEVICEKIT_ZZZ_ZZZ_ZZZ_ZZZ": "1"})
    assert all(name in str(caught.value) for name in VARIABLES)


# -- Every variable that the code reads -----------------------------------------------------------------------

SOURCE = Path(devicekit.__file__).parent
# Variables whose names are not in the source: those in the table itself, and what a manifest names.
COMPUTED = {
    ("devtools/doctor/hosts.py", "switch"),  # each host's own
    ("commands/info.py", "name"),
    ("registry/selection.py", "variable"),
    ("device/opening.py", "name"),
    ("devtools/certify/parts/conformance.py", "variable"),  # the backend's
}
_READERS = {"get", "pop", "setdefault", "__getitem__"}


def _constants(tree: ast.AST) -> dict[str, str]:
    return {
        target.id: node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _is_environment(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in ("environ", "environb", "variables")


def _read(tree: ast.AST) -> Iterator[ast.expr]:
    """What stands for the name wherever the environment is read or written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and _is_environment(node.value):
            yield node.slice
        elif isinstance(node, ast.Compare) and any(map(_is_environment, node.comparators)):
            yield node.left
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            reads = node.func.attr in _READERS and _is_environment(node.func.value)
            if reads or node.func.attr in ("getenv", "putenv", "unsetenv"):
                yield node.args[0]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getenv":
            yield node.args[0]


def test_every_variable_that_is_read_is_in_the_table() -> None:
    found: set[str] = set()
    computed: set[tuple[str, str]] = set()
    for file in SOURCE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        constants = _constants(tree)
        for node in _read(tree):
            name = node.value if isinstance(node, ast.Constant) else constants.get(ast.unparse(node))
            if isinstance(name, str):
                found.add(name)
            else:
                computed.add((file.relative_to(SOURCE).as_posix(), ast.unparse(node)))
    known = {*VARIABLES, *VARIABLES_OF_OTHERS}
    assert {name for name in found if name not in known} == set()
    assert len(found) > 8
    assert computed <= COMPUTED | _FROM_TABLES, computed - COMPUTED


# Names that are taken from a list of names, each of which is in the table by the test below.
_FROM_TABLES = {
    ("commands/keys.py", "variable"),
    ("commands/launched.py", "name"),
    ("devtools/doctor/children.py", "AUTOLOAD_SWITCH"),
    ("release/settings.py", "_DRY_RUN"),
    ("release/settings.py", "_FILE"),
    ("release/settings.py", "name"),
}


def test_every_name_in_the_source_is_in_the_table() -> None:
    """Help texts, messages and lists of names among them."""
    pattern = re.compile(r"\bDEVICEKIT_[A-Z0-9_]*[A-Z0-9]\b")
    named = {
        name
        for file in SOURCE.rglob("*.*")
        if file.suffix in (".py", ".html", ".toml")
        for name in pattern.findall(file.read_text())
    }
    prefixes = {"DEVICEKIT_RELEASE", "DEVICEKIT_CONFORMANCE"}
    assert named - prefixes <= {*VARIABLES}


def test_a_value_that_is_a_secret_is_not_shown() -> None:
    for name in ("DEVICEKIT_API_KEY", "DEVICEKIT_ADMIN_API_KEY", "DEVICEKIT_APIKEY", "DEVICEKIT_ADMIN_TOKEN"):
        assert "hush" not in shown(name, "hush")
    assert shown("DEVICEKIT_BACKEND", "npu") == "npu"
