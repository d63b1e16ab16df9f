"""Hooks that go away where the vendor's module lacks what they rest on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from devicekit.contract import hookimpl
from devicekit.registry.validation import implemented_hooks
from devicekit.torchlike import hide, lacks, needs
from devicekit.torchlike.needs import hide_unmet


class Backend:
    @hookimpl
    @needs("empty_cache")
    def empty_cache(self) -> None:
        return None

    @hookimpl
    @needs("memory.record")
    def record_memory_history(self, index: int, enabled: bool) -> None:
        return None

    @hookimpl
    def synchronize(self, index: int) -> None:
        return None


def test_only_hooks_whose_needs_are_unmet_go_away() -> None:
    backend = Backend()
    hide_unmet(backend, SimpleNamespace(empty_cache=print, memory=SimpleNamespace()))
    assert backend.empty_cache is not None
    assert backend.record_memory_history is None
    assert backend.synchronize is not None


def test_a_need_inside_a_submodule_is_met_there() -> None:
    backend = Backend()
    hide_unmet(backend, SimpleNamespace(memory=SimpleNamespace(record=print)))
    assert backend.empty_cache is None
    assert backend.record_memory_history is not None


def test_a_class_lacks_a_hook_and_the_class_it_extends_keeps_it() -> None:
    @lacks("empty_cache")
    class Poorer(Backend):
        pass

    assert "empty_cache" not in implemented_hooks(Poorer())
    assert "empty_cache" in implemented_hooks(Backend())


def test_hiding_what_is_no_hook_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no hook 'empty_cash'"):
        hide(Backend(), "empty_cash")
