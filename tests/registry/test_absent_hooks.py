"""How a plugin says that a hook is absent: by setting it to None."""

from __future__ import annotations

import pytest

from devicekit.contract import CONTRACT_VERSION, Manifest, hookimpl
from devicekit.contract.errors import InvalidHooks
from devicekit.registry import Candidate, OpenedBackend
from devicekit.registry.validation import check_hooks, implemented_hooks
from tests.required import Required


class Vendor(Required):
    @hookimpl
    def empty_cache(self) -> None:
        raise AssertionError("this version's function must not be called")


class OldVendor(Vendor):
    empty_cache = None  # type: ignore[assignment]


def _candidate(**more: object) -> Candidate:
    manifest = Manifest.parse(
        {"backend": {"name": "acme", "device_type": "acme", "contract": ">=1.0", **more}}
    )
    return Candidate("acme", "devicekit-acme", "1.0", "acme:Vendor", manifest)


def _made_by_version() -> Vendor:
    made = Vendor()
    made.empty_cache = None  # type: ignore[method-assign, assignment]
    return made


@pytest.mark.parametrize("plugin", [OldVendor(), _made_by_version()], ids=["class", "object"])
def test_a_hook_set_to_none_is_neither_implemented_nor_called(plugin: Vendor) -> None:
    candidate = _candidate()
    check_hooks(plugin, candidate)
    assert "empty_cache" not in implemented_hooks(plugin)
    assert candidate.manifest is not None
    opened = OpenedBackend(candidate, candidate.manifest, CONTRACT_VERSION, plugin)
    assert opened.function("empty_cache") is None
    assert opened.function("synchronize") is not None


def test_another_object_of_the_class_keeps_the_hook() -> None:
    _made_by_version()
    assert "empty_cache" in implemented_hooks(Vendor())


def test_a_required_hook_cannot_be_taken_back() -> None:
    plugin = Vendor()
    plugin.synchronize = None  # type: ignore[method-assign, assignment]
    with pytest.raises(InvalidHooks, match="synchronize"):
        check_hooks(plugin, _candidate())


def test_a_claim_on_a_hook_that_was_taken_back_is_refused() -> None:
    with pytest.raises(InvalidHooks, match="claims caching_allocator"):
        check_hooks(OldVendor(), _candidate(capabilities=["caching_allocator"]))
