"""A backend whose manifest says ``automatic = false`` is used only when asked for by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devicekit.contract import Manifest, hookimpl
from devicekit.registry import Verdict, register_backend, select, unregister_backend


class Ready:
    @hookimpl
    def is_available(self) -> bool:
        return True

    @hookimpl
    def device_count(self) -> int:
        return 1

    @hookimpl
    def synchronize(self, index: int) -> None:
        return None


def _manifest(name: str, **more: object) -> Manifest:
    return Manifest.parse({"backend": {"name": name, "device_type": "acme", "contract": ">=1.0", **more}})


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register_backend(Ready, _manifest("asked_only", probe_order=1, automatic=False))
    register_backend(Ready, _manifest("ordinary", probe_order=2))
    yield
    unregister_backend("asked_only")
    unregister_backend("ordinary")


@pytest.mark.parametrize("policy", ["strict", "matching", "lenient"])
def test_it_is_passed_over_and_the_choice_says_why(policy: str) -> None:
    selection = select(policy=policy)
    assert selection.backend.name == "ordinary"
    report = next(one for one in selection.candidates if one.name == "asked_only")
    assert report.verdict is Verdict.NOT_TRIED
    assert report.reason == "it is used only when asked for by name"


def test_it_is_used_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select("asked_only").backend.name == "asked_only"
    monkeypatch.setenv("DEVICEKIT_BACKEND", "asked_only")
    assert select().backend.name == "asked_only"
