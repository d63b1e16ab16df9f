from __future__ import annotations

import threading

import pytest

import devicekit
from devicekit.contract.errors import BackendLoadError, BackendUnavailable, ConfigurationError


class Probed:
    """A backend whose two probes are given as functions."""

    def __init__(self, available, count=lambda: 1) -> None:
        self._available = available
        self._count = count

    @devicekit.hookimpl
    def is_available(self) -> bool:
        return self._available()

    @devicekit.hookimpl
    def device_count(self) -> int:
        return self._count()

    @devicekit.hookimpl
    def synchronize(self, index: int) -> None: ...


def raises(error: BaseException):
    def act():
        raise error

    return act


@pytest.mark.parametrize("error", [OSError("no driver"), RuntimeError("x"), SystemExit(1), GeneratorExit()])
def test_a_probe_that_raises_is_a_typed_error_with_its_cause(register, error):
    register(lambda: Probed(raises(error)), open=False)
    with pytest.raises(BackendLoadError, match="failed while looking for its hardware") as caught:
        devicekit.select("acme")
    assert caught.value.__cause__ is error


def test_a_probe_that_hangs_ends_at_the_limit_and_is_not_asked_again(register, monkeypatch):
    release, asked = threading.Event(), []

    def hang() -> bool:
        asked.append(1)
        return release.wait()

    register(lambda: Probed(hang), open=False)
    monkeypatch.setenv("DEVICEKIT_PROBE_TIMEOUT", "0.05")
    with pytest.raises(BackendLoadError, match=r"did not answer .* within 0.05 s") as first:
        devicekit.select("acme")
    with pytest.raises(BackendLoadError) as second:
        devicekit.select("acme")
    assert second.value is first.value
    assert asked == [1]
    release.set()


@pytest.mark.parametrize("limit", ["0", "-1", "soon", "inf", "nan"])
def test_a_limit_that_is_no_time_is_a_configuration_error(register, monkeypatch, limit):
    register(lambda: Probed(lambda: True), open=False)
    monkeypatch.setenv("DEVICEKIT_PROBE_TIMEOUT", limit)
    with pytest.raises(ConfigurationError, match="DEVICEKIT_PROBE_TIMEOUT must be a positive number"):
        devicekit.select("acme")


@pytest.mark.parametrize(
    ("available", "count"),
    [(1, 1), ("yes", 1), (None, 1), (True, 0), (True, True), (True, 1.0), (True, -1), (True, None)],
)
def test_answers_that_contradict_the_contract_are_refused(register, available, count):
    register(lambda: Probed(lambda: available, lambda: count), open=False)
    with pytest.raises(BackendLoadError, match="contradicts the contract"):
        devicekit.select("acme")


def test_what_is_visible_counts_until_the_first_device_is_opened(register, monkeypatch):
    import os

    def count() -> int:
        return len([one for one in os.environ.get("ACME_VISIBLE", "0,1").split(",") if one])

    register(
        lambda: Probed(lambda: count() > 0, count),
        open=False,
        indexed=True,
        visible_devices_variable="ACME_VISIBLE",
    )
    assert devicekit.select("acme").candidates[0].device_count == 2
    monkeypatch.setenv("ACME_VISIBLE", "")
    with pytest.raises(BackendUnavailable, match="ACME_VISIBLE is ''"):
        devicekit.get_device("acme")
    monkeypatch.setenv("ACME_VISIBLE", "0,1,2")
    assert devicekit.get_device("acme:2").index == 2
    monkeypatch.setenv("ACME_VISIBLE", "0")  # the driver has made up its mind by now
    assert devicekit.get_device("acme:1").index == 1
    assert devicekit.select("acme").candidates[0].device_count == 3


def test_a_probe_that_asks_devicekit_for_a_device_gets_a_named_error(register):
    register(lambda: Probed(lambda: devicekit.get_device("acme") is not None), open=False)
    with pytest.raises(BackendLoadError, match="asked devicekit for a device while it was being probed"):
        devicekit.select("acme")


def test_a_probe_that_raises_may_be_repaired_before_opening(register):
    answers = [raises(OSError("busy")), lambda: True]
    register(lambda: Probed(lambda: answers.pop(0)()), open=False)
    with pytest.raises(BackendLoadError, match="busy"):
        devicekit.select("acme")
    assert devicekit.select("acme").backend.name == "acme"
