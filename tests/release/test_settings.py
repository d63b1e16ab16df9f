"""Users set release points by environment and file; a bad value is refused by name, never passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from devicekit.contract.errors import ConfigurationError
from devicekit.device import Device, get_device
from devicekit.release import (
    DEFAULT_POLICIES,
    InvalidReleaseSetting,
    ReleasePoint,
    ReleasePoints,
    always,
    interval,
    never,
    read_settings,
    when_reclaimable,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "release.toml"
    path.write_text('[release]\nflush = "never"\nidle = "interval:30"\ndry_run = true\n')
    return path


@pytest.fixture
def cpu() -> Device:
    return get_device("cpu")


@pytest.mark.parametrize("point", ReleasePoint)
def test_each_point_has_a_variable(point: ReleasePoint) -> None:
    settings = read_settings({f"DEVICEKIT_RELEASE_{point.name}": "when_reclaimable:1GiB"})
    assert settings.policies == {point: when_reclaimable(1 << 30)}


def test_code_wins_over_environment_over_file_over_defaults(cpu: Device, file: Path) -> None:
    environ = {"DEVICEKIT_RELEASE_FILE": str(file), "DEVICEKIT_RELEASE_IDLE": "interval:5"}
    releases = ReleasePoints.configured(cpu, environ=environ)
    assert releases.policies[ReleasePoint.FLUSH] == never()
    assert releases.policies[ReleasePoint.IDLE] == interval(5)
    assert releases.policies[ReleasePoint.CONTINUE] == DEFAULT_POLICIES[ReleasePoint.CONTINUE]
    assert releases.dry_run
    code = ReleasePoints.configured(cpu, {ReleasePoint.IDLE: always()}, environ=environ, dry_run=False)
    assert code.policies[ReleasePoint.IDLE] == always()
    assert not code.dry_run
    quiet = ReleasePoints.configured(cpu, environ={**environ, "DEVICEKIT_RELEASE_DRY_RUN": "no"})
    assert not quiet.dry_run


def test_nothing_set_means_the_defaults(cpu: Device) -> None:
    releases = ReleasePoints.configured(cpu, environ={"DEVICEKIT_RELEASE_FLUSH": ""})
    assert releases.policies == DEFAULT_POLICIES
    assert not releases.dry_run


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch, cpu: Device) -> None:
    monkeypatch.setenv("DEVICEKIT_RELEASE_IDLE", "always")
    assert ReleasePoints.configured(cpu).policies[ReleasePoint.IDLE] == always()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DEVICEKIT_RELEASE_FLUSH", "sometimes"),
        ("DEVICEKIT_RELEASE_IDLE", "interval:-1"),
        ("DEVICEKIT_RELEASE_DRY_RUN", "perhaps"),
        ("DEVICEKIT_RELEASE_FILE", "/nowhere/release.toml"),
    ],
)
def test_a_bad_variable_is_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(InvalidReleaseSetting) as caught:
        read_settings({variable: value})
    assert caught.value.source == variable
    assert caught.value.value == value
    assert str(caught.value).startswith(f"{variable}={value!r}: ")


def test_a_misspelt_variable_is_refused_with_the_right_spelling() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean DEVICEKIT_RELEASE_FLUSH"):
        read_settings({"DEVICEKIT_RELEASE_FLUHS": "always"})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[release]\nfluhs = 'always'\n", "release.fluhs='always': There is no such release point"),
        ("[release]\nflush = 'soon'\n", "release.flush='soon'"),
        ("[release]\nflush = true\n", "A policy is a string"),
        ("[release]\ndry_run = 'yes'\n", "Write true or false"),
        ("release = 1\n", "is a table"),
        ("[release\n", "as TOML"),
    ],
)
def test_a_bad_file_is_refused_by_key(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InvalidReleaseSetting, match=complaint) as caught:
        read_settings({}, path)
    assert str(path) in str(caught.value)


def test_a_file_about_something_else_sets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text("[server]\nport = 1\n")
    assert read_settings({}, path).policies == {}
