"""Faults of the host: an honest backend under a devicekit that was broken on purpose.

Each class breaks it where it is constructed, so that one process has one fault.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import devicekit.device.dispatch
import devicekit.device.handle
import devicekit.device.opening
import devicekit.registry.loading
import devicekit.registry.opened
import devicekit.registry.probing
import devicekit.registry.selection
from devicekit.contract import MemoryStats, ReleaseResult, hookimpl
from devicekit.registry import OpenedBackend
from devicekit.registry.probing import Probe
from devicekit_conformance.selftest.honest import Honest, claiming

_dispatch, _device = devicekit.device.dispatch, devicekit.device.handle


def _put(where: object, name: str, fault: object) -> None:
    """Break one name of devicekit's."""
    setattr(where, name, fault)


class HooksAreNotChecked(Honest):
    """The host registers whatever it is given, here a hook whose argument has a default."""

    caught_by = "DK-LOAD-002"

    def __init__(self) -> None:
        _put(devicekit.registry.loading, "check_hooks", lambda plugin, candidate: None)

    @hookimpl
    def memory_info(self, index: int = 0):  # type: ignore[no-untyped-def]  # the plugin's fault
        return super().memory_info(index)


class ClaimsAreNotChecked(Honest):
    """The host believes a claim whose hook is missing."""

    caught_by = "DK-CAP-001"
    manifest = claiming("memory_fraction")
    set_memory_fraction = None  # type: ignore[assignment]  # the plugin's fault

    def __init__(self) -> None:
        _put(devicekit.registry.loading, "check_hooks", lambda plugin, candidate: None)


class MissingIsZero(Honest):
    """The host answers 0 where nobody counts."""

    caught_by = "DK-SAFE-001"

    def __init__(self) -> None:
        _dispatch._UNKNOWN["MemoryStats"] = MemoryStats(allocated=0, reserved=0)


class MissingDoesNothing(Honest):
    """The host does nothing where correctness depends on it."""

    caught_by = "DK-SAFE-001"

    def __init__(self) -> None:
        _put(_dispatch, "_missing", lambda backend, spec: lambda *arguments: None)


class MissingIsAnAttributeError(Honest):
    """The host falls over a missing hook."""

    caught_by = "DK-SAFE-001"

    def __init__(self) -> None:
        def fall(*arguments: object) -> object:
            raise AttributeError("NoneType has no attribute")

        _put(_dispatch, "_missing", lambda backend, spec: fall)


class RequiredIsNotRequired(Honest):
    """The host opens a backend that cannot synchronise."""

    caught_by = "DK-SAFE-002"

    def __init__(self) -> None:
        _put(devicekit.registry.loading, "check_hooks", lambda plugin, candidate: None)


class NeedsSomething(Honest):
    """The host cannot release anything on a backend that has neither statistics nor the driver's figures."""

    caught_by = "DK-SAFE-003"

    def __init__(self) -> None:
        release = _device.Device._release

        def fragile(self, hook, *rest):  # type: ignore[no-untyped-def]  # a stand-in
            if not self.supports("memory_stats") and not self.supports("memory_info"):
                raise KeyError("reserved")
            return release(self, hook, *rest)

        _put(_device.Device, "_release", fragile)


class SwallowsErrors(Honest):
    """The host answers None where a hook raised."""

    caught_by = "DK-SAFE-004"

    def __init__(self) -> None:
        _put(_dispatch, "raise_as_hook_error", lambda backend, hook, error: None)


class WrapsOutOfMemory(Honest):
    """The host turns out of memory into another error."""

    caught_by = "DK-SAFE-005"

    def __init__(self) -> None:
        _put(_dispatch, "classify", lambda backend, error: None)


class BelievesAnyType(Honest):
    """The host passes on whatever a hook returns."""

    caught_by = "DK-SAFE-006"

    def __init__(self) -> None:
        _put(_dispatch, "_check", lambda backend, spec: lambda found: found)


class OneCallAtATime(Honest):
    """The host holds one lock around every hook."""

    caught_by = "DK-SAFE-007"

    def __init__(self) -> None:
        lock, function = threading.Lock(), OpenedBackend.function

        def locked(self: OpenedBackend, hook: str) -> Callable[..., object] | None:
            found = function(self, hook)
            if found is None:
                return None

            def call(*arguments: object) -> object:
                with lock:
                    return found(*arguments)

            return call

        _put(OpenedBackend, "function", locked)


class BelievesTheProbe(Honest):
    """The host does not look at what the presence hooks return."""

    caught_by = "DK-SAFE-008"

    def __init__(self) -> None:
        def trusting(backend: OpenedBackend) -> Probe:
            return Probe(True, 1)

        _put(devicekit.registry.selection, "probe", trusting)
        _put(devicekit.device.opening, "probe", trusting)


class InventsReleases(Honest):
    """The host reports bytes that nobody measured."""

    caught_by = "DK-SAFE-009"

    def __init__(self) -> None:
        empty = _device.Device.empty_cache

        def boastful(self: _device.Device) -> ReleaseResult:
            return ReleaseResult(True, None, 1 << 20, 0) if empty(self) else empty(self)

        _put(_device.Device, "empty_cache", boastful)


class AnswersForEachOther(Honest):
    """The host asks any other backend for a hook that one lacks."""

    caught_by = "DK-SAFE-010"

    def __init__(self) -> None:
        function = OpenedBackend.function
        opened: list[OpenedBackend] = []

        def shared(self: OpenedBackend, hook: str) -> Callable[..., object] | None:
            if self not in opened:
                opened.append(self)
            return next(
                (found for one in (self, *opened) if (found := function(one, hook)) is not None), None
            )

        _put(OpenedBackend, "function", shared)
