"""The backend under test with some of its hooks gone or misbehaving, opened beside the original."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from devicekit_conformance import asking, hook_faults
from devicekit_conformance.context import Context, expect, fail
from devicekit_conformance.frozen_contract import HOOKS, Missing

if TYPE_CHECKING:
    from devicekit.device import Device

# What the original must have shown before anything can be concluded from altering it.
AFTER = ("DK-LOAD-002", "DK-CORE-002", "DK-CORE-005", "DK-CORE-006")
REQUIRED = frozenset(name for name, hook in HOOKS.items() if hook.missing is Missing.REFUSE_BACKEND)


@contextmanager
def device_without(ctx: Context, hooks: frozenset[str]) -> Iterator[Device]:
    """A device of the backend without some of its hooks."""
    from devicekit.device import get_device

    plugin = hook_faults.without(ctx.plugin, ctx.implemented, hooks)
    manifest = hook_faults.manifest_for(ctx.manifest, ctx.implemented - hooks)
    with hook_faults.offered(plugin, manifest) as name:
        yield get_device(name)


@contextmanager
def name_with(ctx: Context, hook: str, body: Callable[..., object]) -> Iterator[str]:
    """The name of the backend with one hook replaced, or added, by ``body``; it is not opened yet."""
    plugin = hook_faults.replacing(ctx.plugin, ctx.implemented, hook, body)
    manifest = hook_faults.manifest_for(ctx.manifest, ctx.implemented | {hook})
    with hook_faults.offered(plugin, manifest) as name:
        yield name


@contextmanager
def device_with(ctx: Context, hook: str, body: Callable[..., object]) -> Iterator[Device]:
    """A device of the backend with one hook replaced, or added, by ``body``."""
    from devicekit.device import get_device

    with name_with(ctx, hook, body) as name:
        try:
            device = get_device(name)
        except Exception as error:
            fail(f"with {hook} altered, opening raised {type(error).__name__}: {error}")
        yield device


def others_broken(ctx: Context, device: Device, altered: str) -> list[str]:
    """Harmless hooks that no longer answer although only ``altered`` was changed."""
    faults: list[str] = []
    for name in sorted(ctx.implemented - {altered}):
        if name not in asking.ASK or not HOOKS[name].harmless:
            continue
        try:
            asking.ASK[name](device)
        except Exception as error:
            faults.append(f"with {altered} altered, {name} raised {type(error).__name__}: {error}")
    return faults


def asked_by_the_host(hook: str) -> bool:
    """Whether the host itself calls the hook on behalf of others (statistics around a release)."""
    return hook in ("memory_stats", "host_memory_stats", "current_index")


def expect_none(faults: list[str]) -> None:
    """Fail with the first few of ``faults``, if there are any."""
    more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""
    expect(not faults, "; ".join(faults[:5]) + more)
