"""Whether a backend can be used here, as far as that shows without importing it."""

from __future__ import annotations

import pytest

import devicekit
from devicekit.registry.availability import Availability, availability


def here(name: str) -> Availability:
    return availability(next(one for one in devicekit.discover() if one.name == name))


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("names_hardware", [False, True])
def test_what_shows_decides_and_everything_else_is_left_to_the_backend(
    site, tmp_path, signs: bool, missing: bool, names_hardware: bool
) -> None:
    if signs:
        (tmp_path / "device0").touch()
    keys: dict[str, object] = {"hardware": [str(tmp_path / "device*")]} if names_hardware else {}
    if missing:
        keys["requires"] = ["no-such-package>=1"]
    site.install("acme", **keys)
    found = here("acme")
    shown = (str(tmp_path / "device0"),) if signs else ()
    assert found.signs == (shown if names_hardware else None)
    assert found.importable is not missing
    assert found.usable is (False if missing or (names_hardware and not signs) else None)
    if missing and names_hardware and not signs:
        assert "nor of its vendor's package" in found.reason
    elif missing:
        assert "no-such-package" in found.reason
    elif names_hardware:
        assert found.reason.startswith("sign of" if signs else "no sign of its hardware")
    assert "devicekit_acme" not in site.imported()


def test_the_host_is_always_there_and_what_is_broken_or_not_allowed_never(site, monkeypatch) -> None:
    site.install("host", host=True)
    site.install("broken", manifest="[backend")
    assert here("host").usable is True
    assert (here("broken").usable, here("broken").reason) == (False, "broken")
    monkeypatch.setenv("DEVICEKIT_ALLOWED_DISTRIBUTIONS", "devicekit-other")
    assert (here("host").usable, here("host").reason) == (False, "not allowed")
