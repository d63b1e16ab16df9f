"""Checks a plugin object's hooks against the contract, and reports every fault at once.

pluggy alone lets most of these through: it drops defaulted arguments on some versions and passes them on others,
accepts a hook that leaves an argument out, and ignores a misspelt or undecorated one.

A hook that is ``None``, on the class or on the object, is absent: so a plugin takes back an inherited hook, or one
that this version of the vendor's software cannot serve.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable

from devicekit.contract.capabilities import CAPABILITIES
from devicekit.contract.errors import InvalidHooks
from devicekit.contract.hooks import HOOKS, PROJECT, HookKind, HookSpec
from devicekit.registry.candidates import Candidate

_MARK = f"{PROJECT}_impl"  # the attribute that pluggy's marker sets


def check_hooks(plugin: object, candidate: Candidate) -> None:
    """Check what ``plugin`` implements.

    Raises:
        InvalidHooks: with one entry in ``problems`` for each fault.
    """
    manifest = candidate.manifest
    members = _functions(plugin)
    implemented = {name for name, function in members.items() if hasattr(function, _MARK)}
    problems = [_unknown(name) for name in sorted(implemented - HOOKS.keys())]
    problems.extend(
        f"{name} is a hook of the contract but is not decorated: put @devicekit.hookimpl above it"
        for name in sorted(members.keys() & HOOKS.keys() - implemented)
    )
    for name, spec in HOOKS.items():
        if name in implemented:
            problems.extend(_signature_problems(members[name], spec))
        elif spec.kind is HookKind.REQUIRED and name not in members:
            problems.append(f"the required hook {spec.signature} is missing")
    if manifest is not None:
        problems.extend(
            f"the manifest lists {name} as noop or emulated, and it is not implemented"
            for name in sorted((manifest.noop | manifest.emulated) - implemented)
        )
        problems.extend(_unfounded_claims(manifest.capabilities, implemented))
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise InvalidHooks(
            f"Backend {candidate.label} breaks the contract in {len(problems)} "
            f"place{'s' if len(problems) > 1 else ''}:\n{listed}",
            backend=candidate.name,
            problems=tuple(problems),
        )


def implemented_hooks(plugin: object) -> frozenset[str]:
    """Names of the contract's hooks that ``plugin`` implements."""
    members = _functions(plugin)
    return frozenset(name for name in HOOKS if name in members and hasattr(members[name], _MARK))


def _functions(plugin: object) -> dict[str, Callable[..., object]]:
    found: dict[str, Callable[..., object]] = {}
    for name in dir(plugin):
        if not name.startswith("_"):
            # A property that raises is the plugin's private affair; a hook is never a property.
            member = inspect.getattr_static(plugin, name, None)
            if callable(member) or isinstance(member, (staticmethod, classmethod)):
                found[name] = getattr(plugin, name)
    return found


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, HOOKS, n=1)
    hint = f" (did you mean {HOOKS[near[0]].signature}?)" if near else ""
    return f"{name} is not a hook of the contract{hint}"


def _signature_problems(function: Callable[..., object], spec: HookSpec) -> list[str]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return [f"{spec.name} is not a plain function or method"]
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        return [
            f"{spec.name} is a {type(function).__name__}, not a plain function or method: pluggy ignores it"
        ]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    if any(parameter.kind not in named for parameter in parameters):
        return [f"{spec.name} uses * or **: its signature must be {spec.signature}"]
    problems: list[str] = []
    names = tuple(parameter.name for parameter in parameters)
    if names != spec.parameters:
        problems.append(
            f"{spec.name}({', '.join(names)}) has the wrong signature: it must be {spec.signature}"
        )
    problems.extend(
        f"{spec.name} gives {parameter.name} a default: hook arguments have none"
        for parameter in parameters
        if parameter.default is not inspect.Parameter.empty
    )
    return problems


def _unfounded_claims(claimed: frozenset[str], implemented: set[str]) -> list[str]:
    problems: list[str] = []
    for name in sorted(claimed):
        absent = [hook for hook in CAPABILITIES[name].hooks if hook not in implemented]
        if absent:
            problems.append(f"the manifest claims {name}, which needs {', '.join(absent)}")
    return problems
