"""Notices for the author of a plugin, which its users need not see: what is old in it, or going away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from devicekit.contract.going import GOING, Going
from devicekit.contract.hooks import HOOKS
from devicekit.contract.versions import CONTRACT_VERSION
from devicekit.registry.opened import OpenedBackend


def notices(backend: OpenedBackend) -> tuple[str, ...]:
    """Sentences for the author, who reads them in ``devicekit info``, ``devicekit doctor`` and the suite's report.

    They are no warnings: an engine's users could do nothing about them.
    """
    return (*_age(backend), *_departures(backend), *_of_its_base(backend))


def _age(backend: OpenedBackend) -> Iterator[str]:
    if backend.contract < CONTRACT_VERSION:
        # It cannot have been written for the newest, and is held to none of what that added.
        yield (
            f"The range of contracts ends at {backend.contract}, and this devicekit speaks {CONTRACT_VERSION}: "
            f"the plugin works as one of {backend.contract}. "
            f"Widen the range to <{CONTRACT_VERSION.major + 1} once it was tried."
        )
    for name in sorted(backend.implemented):
        for argument, since in HOOKS[name].added.items():
            if argument not in backend.takes(name):
                yield (
                    f"{name}() does not take {argument}, which contract {since} appended: who asks for it gets "
                    f"UnsupportedHook. Write {argument}=None as its last argument."
                )


def _of_its_base(backend: OpenedBackend) -> Iterator[str]:
    """What the class that the plugin is made of has to say: ``to_the_author``, sentences."""
    try:
        told = getattr(backend.plugin, "to_the_author", ())
    except Exception:  # a plugin's own __getattr__
        return
    if isinstance(told, tuple):
        yield from (one for one in told if isinstance(one, str))


def _departures(backend: OpenedBackend) -> Iterator[str]:
    for one in GOING:
        if _uses(backend, one):
            yield f"The {one.what} {one.name} is going away, says contract {one.since}: {one.instead}."


def _uses(backend: OpenedBackend, one: Going) -> bool:
    manifest = backend.manifest
    if one.what == "hook":
        return one.name in backend.implemented
    if one.what == "argument":
        hook, _, argument = one.name.partition(".")
        return hook in backend.implemented and argument in backend.takes(hook)
    if one.what == "capability":
        return one.name in manifest.capabilities | manifest.optional
    default = next((field.default for field in fields(manifest) if field.name == one.name), None)
    return getattr(manifest, one.name, default) != default
