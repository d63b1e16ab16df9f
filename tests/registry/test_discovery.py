from __future__ import annotations

import subprocess
import sys

import devicekit
from devicekit.contract.errors import DuplicateBackend, ManifestError
from devicekit.registry import Candidate


def found(name: str = "acme") -> Candidate:
    return next(candidate for candidate in devicekit.discover() if candidate.name == name)


def test_an_installed_backend_is_found_with_its_distribution_and_manifest(site):
    site.install(version="2.5", probe_order=7, capabilities=["streams"])
    candidate = found()
    assert (candidate.distribution, candidate.version) == ("devicekit-acme", "2.5")
    assert candidate.manifest is not None
    assert candidate.manifest.probe_order == 7
    assert candidate.error is None


def test_discovery_imports_neither_the_plugin_nor_torch(site, child_environment):
    site.install(code="raise SystemExit('the plugin was imported')")
    script = (
        "import sys, devicekit\n"
        "assert 'acme' in [one.name for one in devicekit.discover()]\n"
        "print(sorted({'torch', 'devicekit_acme', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=child_environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_manifest_in_a_nested_package_is_read_without_importing_the_parents(site):
    site.install(target="devicekit_acme.npu:Backend", code="raise RuntimeError", manifest="")
    nested = site.path / "devicekit_acme" / "npu"
    nested.mkdir()
    (nested / "backend.toml").write_text('[backend]\nname="acme"\ndevice_type="cpu"\ncontract=">=1"\n')
    assert found().manifest is not None
    assert site.imported() == set()


def test_a_single_file_module_has_its_manifest_beside_it(site):
    site.install(target="acme_backend:Backend")
    (site.path / "acme_backend.py").write_text("")
    (site.path / "backend.toml").write_text((site.path / "devicekit_acme" / "backend.toml").read_text())
    assert found().manifest is not None


def test_a_plugin_installed_while_the_process_runs_is_found(site):
    assert devicekit.discover() == ()
    site.install()
    assert found().error is None


def test_an_entry_point_to_a_missing_module_is_named(site):
    site.install(target="no_such_module_here.backend:Backend")
    candidate = found()
    assert isinstance(candidate.error, ManifestError)
    assert "no_such_module_here" in str(candidate.error)


def test_a_missing_manifest_and_one_that_is_no_text_are_errors_of_that_candidate_only(site):
    site.install("bare")
    (site.path / "devicekit_bare" / "backend.toml").unlink()
    site.install("binary")
    (site.path / "devicekit_binary" / "backend.toml").write_bytes(b"\xff\xfe\x00")
    site.install("sound")
    errors = {candidate.name: candidate.error for candidate in devicekit.discover()}
    assert "backend.toml" in str(errors["bare"])
    assert isinstance(errors["binary"], ManifestError)
    assert errors["sound"] is None


def test_an_entry_point_and_its_manifest_must_give_the_same_name(site):
    site.install("acme", manifest='[backend]\nname="apex"\ndevice_type="cpu"\ncontract=">=1"\n')
    assert "'acme'" in str(found().error)
    assert "'apex'" in str(found().error)


def test_two_distributions_with_one_name_are_refused_and_both_named(site):
    site.install("acme", distribution="devicekit-acme", version="1.0")
    site.install("acme", distribution="acme-unofficial", version="9.9")
    candidates = [candidate for candidate in devicekit.discover() if candidate.name == "acme"]
    assert len(candidates) == 2
    for candidate in candidates:
        assert isinstance(candidate.error, DuplicateBackend)
        assert "devicekit-acme 1.0" in str(candidate.error)
        assert "acme-unofficial 9.9" in str(candidate.error)
        assert "pip uninstall" in str(candidate.error)


def test_a_registered_backend_may_not_take_an_installed_name(site, register):
    site.install("acme")
    register(object, open=False)
    assert all(isinstance(candidate.error, DuplicateBackend) for candidate in devicekit.discover())


def test_one_distribution_reached_by_two_paths_is_one_backend(site, monkeypatch):
    site.install()
    monkeypatch.syspath_prepend(str(site.path) + "/.")
    assert [candidate.name for candidate in devicekit.discover()] == ["acme"]


def test_left_over_metadata_without_a_name_hides_no_other_backend(site):
    site.install("sound")
    site.install("husk")
    (site.path / "devicekit_husk-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\n")
    assert found("sound").error is None


def test_impersonators_come_before_and_the_host_after_everything_else(site):
    site.install("host", host=True, probe_order=1)
    site.install("zebra", probe_order=10)
    site.install("alpha", probe_order=100)
    assert [candidate.name for candidate in devicekit.discover()] == ["zebra", "alpha", "host"]
