"""Fixtures that put a vendor's double in torch's place and take it away again."""

from __future__ import annotations

import importlib
from collections.abc import Collection

import pytest

from tests.doubles.vendors import FLAVOURS, build, install
from tests.plugins.support import CASES, Bench, Make


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """make(vendor, version=None, cards=2, traps=(), ...): a fresh backend over a fresh double."""

    def build_bench(
        vendor: str,
        version: str | None = None,
        *,
        cards: int = 2,
        traps: Collection[str] = (),
        without_quirks: Collection[str] = (),
        without: Collection[str] = (),
    ) -> Bench:
        double = build(FLAVOURS[vendor](version), cards=cards, traps=set(traps))
        for name in without:
            delattr(double.module, name)
        install(monkeypatch, double)
        plugin = importlib.import_module(f"devicekit_{vendor}")
        return Bench(vendor, double, plugin.Backend(without_quirks=without_quirks))

    return build_bench


@pytest.fixture(params=CASES, ids="-".join)
def bench(request: pytest.FixtureRequest, make: Make) -> Bench:
    """Every vendor on its oldest and its newest version, two devices, never used."""
    return make(*request.param)
