"""Makes a backend out of another one in which some hooks are missing or misbehave."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from devicekit_conformance.frozen_contract import capability

if TYPE_CHECKING:
    from devicekit.contract.manifest import Manifest

_serial = itertools.count(1)


class PlantedError(Exception):
    """What a raising hook raises."""


class NotInTheContract:
    """What a hook of the wrong type returns."""


class Altered:
    """A plugin object: the hooks of another one, some of them replaced or gone."""

    def __init__(self, hooks: Mapping[str, Callable[..., object]]) -> None:
        for name, function in hooks.items():
            setattr(self, name, function)


def without(plugin: object, implemented: frozenset[str], hooks: frozenset[str]) -> Altered:
    """``plugin`` without some of its hooks."""
    return Altered({name: getattr(plugin, name) for name in sorted(implemented - hooks)})


def replacing(plugin: object, implemented: frozenset[str], hook: str, body: Callable[..., object]) -> Altered:
    """``plugin`` with one hook replaced, or added, by ``body``, which takes the hook's arguments."""
    from devicekit.contract import HOOKS, hookimpl

    names = HOOKS[hook].parameters  # as this host declares it
    if hook in implemented:  # the plugin may be for an older or for a newer contract
        names = tuple(inspect.signature(getattr(plugin, hook)).parameters)

    def replacement(*arguments: object) -> object:
        return body(*arguments)

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    replacement.__name__ = hook
    replacement.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what inspect reads
    kept = {name: getattr(plugin, name) for name in sorted(implemented - {hook})}
    return Altered({**kept, hook: hookimpl(replacement)})


def manifest_for(manifest: Manifest, hooks: frozenset[str]) -> Manifest:
    """An honest manifest, under a new name, for a backend that has just these hooks."""
    founded = {name for name in manifest.capabilities if set(capability(name) or ()) <= hooks}
    return dataclasses.replace(
        manifest,
        name=f"{manifest.name}_variant_{next(_serial)}",
        noop=manifest.noop & hooks,
        emulated=manifest.emulated & hooks,
        capabilities=frozenset(founded),
    )


@contextmanager
def offered(plugin: object, manifest: Manifest) -> Iterator[str]:
    """Offer a plugin object to the registry under its manifest's name for the length of the block."""
    from devicekit.registry import register_backend, unregister_backend

    register_backend(lambda: plugin, manifest)
    try:
        yield manifest.name
    finally:
        unregister_backend(manifest.name)


class Gate:
    """A hook body that hangs until it is released, and never for longer than a minute."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._open = threading.Event()

    def __call__(self, *_: object) -> object:
        self.entered.set()
        self._open.wait(60.0)
        raise PlantedError("the hook hung and was released")

    def release(self) -> None:
        self._open.set()
