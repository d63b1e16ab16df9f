"""What every test starts from: no DEVICEKIT_* setting, and no backend left over from another test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

import devicekit
from devicekit.contract import Manifest

Register = Callable[..., devicekit.Device]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DEVICEKIT_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def register() -> Iterator[Register]:
    """Register a backend class in this process, open its first device, and take it back after the test.

    Keyword arguments are keys of its manifest.
    """
    names: list[str] = []

    def offer(
        factory: Callable[[], object], *, name: str = "acme", open: bool = True, **keys: object
    ) -> object:
        table = {"name": name, "device_type": "cpu", "contract": ">=1.0,<2", "indexed": False, **keys}
        candidate = devicekit.register_backend(factory, Manifest.parse({"backend": table}))
        names.append(name)
        return devicekit.get_device(name) if open else candidate

    yield offer
    for name in names:
        devicekit.unregister_backend(name)
