"""Checks a plugin object's hooks against the contract, and reports every fault at once.

pluggy alone lets most of these through: it drops defaulted arguments on some versions and passes them on others,
accepts a hook that leaves an argument out, and ignores a misspelt or undecorated one.

A hook that is ``None``, on the class or on the object, is absent: so a plugin takes back an inherited hook, or one
that this version of the vendor's software cannot serve.

A plugin whose range admits a newer contract than this host's may have hooks, and appended arguments with defaults,
that this host does not know: `newer_than_host` lists them, and nothing calls them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Set

from packaging.version import Version

from devicekit.contract.capabilities import CAPABILITIES
from devicekit.contract.errors import InvalidHooks
from devicekit.contract.hooks import HOOKS
from devicekit.contract.manifest import Manifest
from devicekit.contract.names import misspelling_of, resembling
from devicekit.contract.spec import PROJECT, HookKind, HookSpec
from devicekit.contract.text import shown
from devicekit.contract.versions import SERVED_CONTRACTS, negotiate, reaches_beyond
from devicekit.registry.candidates import Candidate

_MARK = f"{PROJECT}_impl"  # the attribute that pluggy's marker sets


def check_hooks(plugin: object, candidate: Candidate) -> None:
    """Check what ``plugin`` implements, against every contract that both sides speak: it may be written for any.

    Raises:
        InvalidHooks: with one entry in ``problems`` for each fault.
    """
    manifest = candidate.manifest
    contracts = SERVED_CONTRACTS if manifest is None else negotiate(manifest.contract)
    members = _functions(plugin)
    marks = {name: mark for name, one in members.items() if (mark := getattr(one, _MARK, None)) is not None}
    implemented = marks.keys() & HOOKS.keys()
    beyond = manifest is not None and reaches_beyond(manifest.contract)
    problems = [
        _unknown(name)
        for name in sorted(marks.keys() - implemented)
        if not _may_be_newer(name, members, beyond)
    ]
    problems.extend(
        f"{name} is a hook of the contract but is not decorated: put @devicekit.hookimpl above it"
        for name in sorted(members.keys() & HOOKS.keys() - implemented)
    )
    for name, spec in HOOKS.items():
        if name in implemented:
            problems.extend(_signature_problems(members[name], spec, contracts, beyond))
            if marks[name].get("wrapper") or marks[name].get("hookwrapper"):
                problems.append(f"{name} is a wrapper: a backend implements hooks, and observers wrap them")
        elif name not in members and _is_attribute(plugin, name):
            problems.append(f"{name} is a hook of the contract but not a method: write {spec.signature}")
        elif _is_required(spec, contracts) and name not in members:
            problems.append(f"the required hook {spec.signature} is missing")
    if manifest is not None:
        taken_back = hooks_taken_back(plugin)
        problems.extend(
            f"the manifest lists {name} as noop or emulated, and it is not implemented"
            for name in sorted((manifest.noop | manifest.emulated) - implemented - taken_back)
        )
        problems.extend(_unfounded_claims(manifest.capabilities, implemented | taken_back))
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


def hooks_taken_back(plugin: object) -> frozenset[str]:
    """Hooks that the plugin's class has and this object does not: the vendor's software here lacks them.

    Claims of the manifest that rest on them fall with them.
    """
    own, offered = implemented_hooks(plugin), implemented_hooks(type(plugin))
    return offered - own


def newer_than_host(plugin: object, manifest: Manifest) -> tuple[str, ...]:
    """Hooks and arguments of a checked plugin that this host's contract does not have, as in "hook 'x'"."""
    if not reaches_beyond(manifest.contract):
        return ()
    members = _functions(plugin)
    marked = {name: one for name, one in members.items() if hasattr(one, _MARK)}
    hooks = [f"hook {shown(name)}" for name in sorted(marked.keys() - HOOKS.keys())]
    arguments = [
        f"argument {shown(argument)} of {name}"
        for name in sorted(marked.keys() & HOOKS.keys())
        for argument in inspect.signature(marked[name]).parameters
        if argument not in HOOKS[name].parameters
    ]
    return (*hooks, *arguments)


def parameter_names(function: Callable[..., object], spec: HookSpec) -> tuple[str, ...]:
    """The parameters of an implemented hook that the contract knows, in order."""
    return tuple(name for name in inspect.signature(function).parameters if name in spec.parameters)


def _is_required(spec: HookSpec, contracts: tuple[Version, ...]) -> bool:
    return spec.kind is HookKind.REQUIRED and min(contracts) >= Version(spec.since)


def _is_attribute(plugin: object, name: str) -> bool:
    return inspect.getattr_static(plugin, name, None) is not None


def _functions(plugin: object) -> dict[str, Callable[..., object]]:
    found: dict[str, Callable[..., object]] = {}
    for name in dir(plugin):
        if not name.startswith("_"):
            # A property that raises is the plugin's private affair; a hook is never a property.
            member = inspect.getattr_static(plugin, name, None)
            if callable(member) or isinstance(member, (staticmethod, classmethod)):
                found[name] = getattr(plugin, name)
    return found


def _may_be_newer(name: str, members: Mapping[str, Callable[..., object]], beyond: bool) -> bool:
    # pluggy's own mark says so outright; otherwise a name that is near a known one is a misspelling.
    if getattr(members[name], _MARK).get("optionalhook"):
        return True
    return beyond and misspelling_of(name, HOOKS) is None


def _unknown(name: str) -> str:
    meant = misspelling_of(name, HOOKS) or resembling(name, HOOKS)
    hint = f" (did you mean {HOOKS[meant].signature}?)" if meant else ""
    return f"{name} is not a hook of the contract{hint}"


def _signature_problems(
    function: Callable[..., object], spec: HookSpec, contracts: tuple[Version, ...], beyond: bool
) -> list[str]:
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        return [
            f"{spec.name} is a {type(function).__name__}, not a plain function or method: pluggy ignores it"
        ]
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return [f"{spec.name} is not a plain function or method"]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    if any(parameter.kind not in named for parameter in parameters):
        return [f"{spec.name} uses * or **: its signature must be {spec.signature}"]
    names = tuple(parameter.name for parameter in parameters)
    known = names[: len(spec.parameters)]
    wrong = f"{spec.name}({', '.join(names)}) has the wrong signature: it must be {spec.signature}"
    if known not in {spec.parameters_at(version) for version in contracts}:
        return [wrong]
    problems = [
        f"{wrong}; give {parameter.name}, of a newer contract, a default" if beyond else wrong
        for parameter in parameters[len(known) :]
        if not beyond or parameter.default is inspect.Parameter.empty
    ]
    # An appended argument may have one, so that the plugin serves hosts that do not know the argument.
    problems.extend(
        f"{spec.name} gives {parameter.name} a default: hook arguments have none"
        for parameter in parameters[: len(known)]
        if parameter.default is not inspect.Parameter.empty and parameter.name not in spec.added
    )
    return problems


def _unfounded_claims(claimed: frozenset[str], implemented: Set[str]) -> list[str]:
    problems: list[str] = []
    for name in sorted(claimed):
        absent = [hook for hook in CAPABILITIES[name].hooks if hook not in implemented]
        if absent:
            problems.append(f"the manifest claims {name}, which needs {', '.join(absent)}")
    return problems
