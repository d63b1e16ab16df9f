"""Hooks that exist only where the vendor's module has what they need, decided once when a backend is made.

A hook that is set to ``None``, on the class or the object, is absent for the registry, for pluggy, and for
``Device.supports``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from devicekit.contract import HOOKS

_NEEDS = "_devicekit_needs"
_F = TypeVar("_F", bound=Callable[..., object])
_T = TypeVar("_T")


def needs(*names: str) -> Callable[[_F], _F]:
    """Mark a hook as needing attributes of the vendor's module; a dot reaches into a submodule."""

    def mark(function: _F) -> _F:
        setattr(function, _NEEDS, names)
        return function

    return mark


def lacks(*hooks: str) -> Callable[[type[_T]], type[_T]]:
    """Take ``hooks`` back from a backend class, for a vendor that has them in no version."""

    def mark(backend: type[_T]) -> type[_T]:
        hide(backend, *hooks)
        return backend

    return mark


def hide(backend: object, *hooks: str) -> None:
    """Make ``hooks`` absent from ``backend``, an object or a class.

    Raises:
        ValueError: the contract has no such hook.
    """
    for hook in hooks:
        if hook not in HOOKS:
            raise ValueError(f"The device contract has no hook {hook!r}.")
        setattr(backend, hook, None)


def hide_unmet(backend: object, module: object) -> None:
    """Make every hook absent whose `needs` the vendor's ``module`` does not meet."""
    for hook in HOOKS:
        if getattr(backend, hook, None) is not None and not meets(module, needed(type(backend), hook)):
            hide(backend, hook)


def needed(backend: type, hook: str) -> tuple[str, ...]:
    """What ``hook`` needs: as its own definition says, or else the one it overrides."""
    for one in backend.__mro__:
        found: tuple[str, ...] | None = getattr(vars(one).get(hook), _NEEDS, None)
        if found is not None:
            return found
    return ()


def hidden_overrides(backend: object, module: object) -> tuple[str, ...]:
    """Sentences about a plugin's own hooks that are absent because of what the overridden hooks need.

    A hook that calls the one it overrides, or the module, needs the same; others may not.
    """
    told = []
    for hook in HOOKS:
        if getattr(backend, hook, None) is not None or getattr(type(backend), hook, None) is None:
            continue
        own = next(vars(one)[hook] for one in type(backend).__mro__ if hook in vars(one))
        code = getattr(own, "__code__", None)
        if (
            hasattr(own, _NEEDS)
            or code is None
            or "__class__" in code.co_freevars
            or "module" in code.co_names
        ):
            continue
        missing = [name for name in needed(type(backend), hook) if not has(module, name)]
        if missing:
            told.append(
                f"{hook}() of the plugin is absent: what it overrides rests on {', '.join(missing)}, which the "
                "vendor's module lacks. Mark it @needs() if it rests on nothing there."
            )
    return tuple(told)


def meets(module: object, names: Iterable[str]) -> bool:
    """Whether ``module`` has every one of the dotted names."""
    return all(has(module, name) for name in names)


def has(module: object, dotted: str) -> bool:
    """Whether ``module`` has the attribute, reaching into submodules at each dot."""
    found: object = module
    for part in dotted.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True
