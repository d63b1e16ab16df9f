from __future__ import annotations

import time

import pytest

import devicekit
from devicekit.contract.errors import (
    BackendLoadError,
    BackendUnavailable,
    ConfigurationError,
    DuplicateBackend,
    UnknownBackend,
)
from devicekit.registry import Policy, Stage, Verdict

ABSENT = """
import devicekit
class Backend:
    @devicekit.hookimpl
    def is_available(self): return False
    @devicekit.hookimpl
    def device_count(self): return 0
    @devicekit.hookimpl
    def synchronize(self, index): pass
"""
BROKEN = "raise OSError('libvendor.so: cannot open shared object file')"


def verdicts(selection: devicekit.Selection) -> dict[str, Verdict]:
    return {report.name: report.verdict for report in selection.candidates}


def test_the_first_backend_with_hardware_wins_and_every_candidate_has_a_verdict(site):
    site.install("none", code=ABSENT, probe_order=1)
    site.install("acme", probe_order=2)
    site.install("later", code=BROKEN, probe_order=3)
    site.install("host", host=True)
    began = time.perf_counter()
    selection = devicekit.select()
    elapsed = time.perf_counter() - began
    assert selection.backend.name == "acme"
    assert verdicts(selection) == {
        "none": Verdict.NO_HARDWARE,
        "acme": Verdict.CHOSEN,
        "later": Verdict.NOT_TRIED,
        "host": Verdict.NOT_TRIED,
    }
    chosen = selection.candidates[1]
    assert (chosen.distribution, chosen.version, chosen.stage) == ("devicekit-acme", "1.0", Stage.PROBE)
    assert chosen.device_count == 1
    assert 0 < chosen.seconds < elapsed
    for name in ("none", "acme", "later", "host"):
        assert f"  {name}: " in selection.explain()
    assert "devicekit_later" not in site.imported()


def test_the_host_is_chosen_when_no_other_backend_has_hardware(site):
    site.install("none", code=ABSENT)
    site.install("host", host=True)
    assert devicekit.select().backend.name == "host"


def test_a_broken_backend_is_never_replaced_by_the_host_in_silence(site):
    site.install("acme", code=BROKEN)
    site.install("host", host=True)
    with pytest.raises(BackendLoadError, match="libvendor"):
        devicekit.select()
    with pytest.raises(BackendLoadError, match="libvendor"):
        devicekit.get_device()
    assert "devicekit_host" not in site.imported()


def test_a_broken_backend_whose_hardware_is_plainly_absent_is_passed_over(site, tmp_path):
    site.install("acme", code=BROKEN, hardware=[str(tmp_path / "acme*")])
    site.install("host", host=True)
    selection = devicekit.select()
    assert selection.backend.name == "host"
    assert verdicts(selection)["acme"] is Verdict.FAILED
    failed = selection.candidates[0]
    assert failed.stage is Stage.IMPORT
    assert isinstance(failed.error, BackendLoadError)


def test_a_sign_of_the_hardware_makes_a_failure_count(site, tmp_path):
    (tmp_path / "acme0").touch()
    site.install("acme", code=BROKEN, hardware=[str(tmp_path / "acme*")])
    site.install("host", host=True)
    with pytest.raises(BackendLoadError, match="libvendor"):
        devicekit.select()


def test_a_backend_that_sees_no_hardware_beside_its_sign_says_so(site, tmp_path):
    (tmp_path / "acme0").touch()
    site.install("acme", code=ABSENT, hardware=[str(tmp_path / "acme*")])
    site.install("host", host=True)
    selection = devicekit.select()
    assert f"although {tmp_path / 'acme0'} exists" in selection.candidates[0].reason


@pytest.mark.parametrize("policy", ["strict", Policy.STRICT])
def test_strict_lets_no_failure_pass(site, tmp_path, policy):
    site.install("acme", code=BROKEN, hardware=[str(tmp_path / "acme*")])
    site.install("host", host=True)
    with pytest.raises(BackendLoadError):
        devicekit.select(policy=policy)


def test_lenient_records_a_failure_and_goes_on(site, monkeypatch):
    site.install("acme", code=BROKEN)
    site.install("host", host=True)
    monkeypatch.setenv("DEVICEKIT_POLICY", "lenient")
    selection = devicekit.select()
    assert selection.policy is Policy.LENIENT
    assert selection.backend.name == "host"
    assert isinstance(selection.candidates[0].error, BackendLoadError)


@pytest.mark.parametrize("policy", list(Policy))
def test_no_policy_replaces_a_backend_that_was_asked_for(site, policy):
    site.install("acme", code=BROKEN, hardware=["/nonexistent/acme*"])
    site.install("none", code=ABSENT)
    site.install("host", host=True)
    with pytest.raises(BackendLoadError, match="libvendor"):
        devicekit.select("acme", policy)
    with pytest.raises(BackendUnavailable, match=r"'none'.*finds no hardware"):
        devicekit.select("none", policy)


def test_a_backend_that_is_named_is_chosen_and_no_other_tried(site):
    site.install("first", probe_order=1)
    site.install("broken", code=BROKEN, probe_order=2)
    site.install("acme", probe_order=3)
    found = verdicts(devicekit.select("acme"))
    assert found == {"acme": Verdict.CHOSEN, "first": Verdict.NOT_TRIED, "broken": Verdict.NOT_TRIED}


def test_a_device_type_whose_backends_all_lack_hardware_names_each_of_them(site):
    there = []
    for name in ("one", "two", "three"):
        site.install(name, code=ABSENT, device_type="odd")
        there.append(name)
        with pytest.raises(BackendUnavailable) as refused:
            devicekit.select("odd")
        said = str(refused.value)
        assert ("Neither do others that serve 'odd': " in said) == (len(there) > 1)
        assert all(f"'{one}'" in said for one in there)


@pytest.mark.parametrize("policy", list(Policy))
def test_a_broken_host_backend_leaves_nothing_and_says_so(site, policy):
    site.install("host", code=BROKEN, host=True)
    with pytest.raises(devicekit.DeviceKitError, match="libvendor"):
        devicekit.select(policy=policy)


def test_an_unreadable_manifest_and_a_duplicate_count_as_failures(site):
    site.install("acme", manifest="not toml")
    site.install("host", host=True)
    with pytest.raises(devicekit.DeviceKitError, match="not valid TOML"):
        devicekit.select()
    assert devicekit.select(policy="lenient").backend.name == "host"
    site.install("acme", distribution="rival")
    with pytest.raises(DuplicateBackend):
        devicekit.select()
    with pytest.raises(DuplicateBackend):
        devicekit.select("acme")


def test_nothing_installed_and_nothing_usable_are_different_errors(site):
    with pytest.raises(UnknownBackend, match="pip install devicekit-cpu"):
        devicekit.select()
    site.install("none", code=ABSENT)
    with pytest.raises(BackendUnavailable, match=r"none: no hardware: is_available\(\) is False"):
        devicekit.select()


def test_the_environment_names_third_party_and_first_party_backends_alike(site, monkeypatch):
    site.install("acme")
    site.install("cpu", code=REQUIRED_CPU, host=True)
    for written, name in (("cpu", "cpu"), ("ACME", "acme"), ("acme:0", "acme"), ("", "acme")):
        monkeypatch.setenv("DEVICEKIT_BACKEND", written)
        assert devicekit.select().backend.name == name
        assert devicekit.get_device().name == name


@pytest.mark.parametrize("written", [":", "cpu:-1", "cpu:0:0", "cpu:one", " ", "\u00e9:1", "x" * 5000])
def test_a_malformed_environment_is_told_by_the_variables_name(site, monkeypatch, written):
    site.install("cpu", code=REQUIRED_CPU, host=True)
    monkeypatch.setenv("DEVICEKIT_BACKEND", written)
    for ask in (devicekit.select, devicekit.get_device):
        with pytest.raises(ConfigurationError, match=r"^DEVICEKIT_BACKEND: A device is written"):
            ask()


REQUIRED_CPU = ABSENT.replace("False", "True").replace("return 0", "return 1")


def test_a_backend_that_is_not_automatic_is_used_only_by_name(site):
    site.install("shy", automatic=False, probe_order=1)
    with pytest.raises(BackendUnavailable, match="shy: not tried: it is used only when asked for by name"):
        devicekit.select()
    assert "devicekit_shy" not in site.imported()
    assert devicekit.select("shy").backend.name == "shy"


def test_an_unselected_backend_is_never_imported(site):
    site.install("acme")
    site.install("other", code="raise SystemExit")
    assert devicekit.get_device("acme").name == "acme"
    assert "devicekit_other" not in site.imported()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("npu", "pip install devicekit-npu"),
        ("acne", "Did you mean 'acme'?"),
        ("cudaa", "pip install devicekit-cuda"),
        ("zzz", "entry point in the group 'devicekit.backends'"),
    ],
)
def test_an_unknown_name_is_answered_with_what_to_do(site, name, said):
    site.install("acme")
    with pytest.raises(UnknownBackend, match=r"installed: acme") as caught:
        devicekit.select(name)
    assert said in str(caught.value)


def test_the_choice_in_words_says_what_was_asked_for(site):
    site.install("acme")
    label = devicekit.select().backend.label
    for request, asked in ((None, "nothing was asked for"), ("acme", "'acme' was asked for")):
        first, *_ = devicekit.select(request, "strict").explain().splitlines()
        assert first == f"{label} was chosen: {asked}, policy strict."


@pytest.mark.parametrize("variable", ["DEVICEKIT_BACKNED", "DEVICEKIT_X"])
def test_a_variable_that_does_not_exist_is_an_error(site, monkeypatch, variable):
    site.install("acme")
    monkeypatch.setenv(variable, "acme")
    with pytest.raises(ConfigurationError, match=variable):
        devicekit.select()


def test_a_policy_that_does_not_exist_is_an_error_that_names_its_source(site, monkeypatch):
    site.install("acme")
    with pytest.raises(ConfigurationError, match="policy must be one of 'strict', 'matching', 'lenient'"):
        devicekit.select(policy="loose")
    monkeypatch.setenv("DEVICEKIT_POLICY", "loose")
    with pytest.raises(ConfigurationError, match="DEVICEKIT_POLICY must be one of"):
        devicekit.select()
