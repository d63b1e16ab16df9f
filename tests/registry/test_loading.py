from __future__ import annotations

import builtins
import traceback

import pytest

import devicekit
from devicekit.contract import Manifest
from devicekit.contract.errors import (
    BackendLoadError,
    ConfigurationError,
    IncompatibleBackend,
    InvalidHooks,
    UnknownBackend,
)
from tests.required import SOURCE, Required
from tests.threads import in_threads


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            "import a_vendor_sdk_that_is_absent",
            "ModuleNotFoundError: No module named 'a_vendor_sdk_that_is_absent'",
        ),
        ("raise OSError('libvendor.so.3: cannot open shared object file')", "OSError: libvendor.so.3"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError: invalid syntax"),
        ("class Stop(BaseException): pass\nraise Stop('driver gone')", "Stop: driver gone"),
        ("import devicekit", "AttributeError"),
    ],
)
def test_whatever_an_import_raises_is_one_typed_error_with_its_cause(site, code, expected):
    site.install(code=code)
    with pytest.raises(BackendLoadError, match="could not be imported") as caught:
        devicekit.select("acme")
    assert expected in str(caught.value)
    assert "devicekit-acme 1.0" in str(caught.value)
    assert caught.value.__cause__ is not None
    assert caught.value.backend == "acme"


def test_a_user_may_interrupt_an_import(site):
    site.install(code="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        devicekit.select("acme")


def test_a_class_that_needs_arguments_is_said_to_fail_at_construction(site):
    site.install(code="class Backend:\n    def __init__(self, path): pass")
    with pytest.raises(BackendLoadError, match="could not be constructed by calling devicekit_acme:Backend"):
        devicekit.select("acme")


def test_a_module_may_be_the_backend(site):
    site.install(
        code="""
        import devicekit

        @devicekit.hookimpl
        def is_available(): return True
        @devicekit.hookimpl
        def device_count(): return 1
        @devicekit.hookimpl
        def synchronize(index): pass
        """,
        target="devicekit_acme",
    )
    assert devicekit.get_device("acme").supports("synchronize")


COUNTED = "import builtins\nbuiltins.imports = getattr(builtins, 'imports', 0) + 1\n"


def imports_counted() -> int:
    return builtins.__dict__.pop("imports")


def test_a_failed_import_runs_once_and_repeats_the_same_error_object_to_every_thread(site):
    site.install(code=COUNTED + "raise OSError('no')")
    errors: list[BackendLoadError] = []

    def attempt() -> None:
        try:
            devicekit.get_device("acme")
        except BackendLoadError as error:
            errors.append(error)

    in_threads(8, attempt)
    assert len(errors) == 8
    assert len({id(error) for error in errors}) == 1
    assert imports_counted() == 1


def test_an_error_that_repeats_does_not_gather_the_frames_of_every_time(site):
    site.install(code="raise OSError('no')")
    depths = []
    for _ in range(4):
        with pytest.raises(BackendLoadError) as caught:
            devicekit.select("acme")
        depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(set(depths)) == 1


def test_many_threads_opening_at_once_get_one_backend_and_one_device(site):
    site.install(code=COUNTED + SOURCE)
    devices: list[devicekit.Device] = []
    in_threads(16, lambda: devices.append(devicekit.get_device("acme")))
    assert imports_counted() == 1
    assert len(devices) == 16
    assert len({id(device) for device in devices}) == 1


def test_a_plugin_that_opens_itself_at_import_gets_a_named_error(site):
    site.install(code="import devicekit\ndevicekit.get_device('acme')\n" + SOURCE)
    with pytest.raises(BackendLoadError, match="asked devicekit for itself while it was being imported"):
        devicekit.select("acme")


def test_a_plugin_may_open_another_backend_at_import(site):
    site.install("other")
    site.install("acme", code="import devicekit\nother = devicekit.get_device('other')\n" + SOURCE)
    assert devicekit.get_device("acme").name == "acme"


def test_what_a_plugin_registered_before_it_failed_is_rolled_back(site):
    site.install(
        code="""
        import devicekit
        table = {"name": "leftover", "device_type": "cpu", "contract": ">=1"}
        devicekit.register_backend(object, devicekit.Manifest.parse({"backend": table}))
        raise OSError("half-way")
        """
    )
    with pytest.raises(BackendLoadError, match="half-way"):
        devicekit.select("acme")
    assert "leftover" not in [candidate.name for candidate in devicekit.discover()]


@pytest.mark.parametrize(
    ("contract", "remedy"),
    [
        (">=0.3,<1", "pip install --upgrade devicekit-acme"),
        ("==0.9", "pip install --upgrade devicekit-acme"),
        (">=2.0,<3", "pip install --upgrade devicekit"),
        ("==1.7.*", "pip install --upgrade devicekit"),
    ],
)
def test_a_contract_that_is_not_served_names_both_versions_and_the_command(site, contract, remedy):
    site.install(code="raise SystemExit('must not be imported')", contract=contract)
    with pytest.raises(IncompatibleBackend) as caught:
        devicekit.select("acme")
    message = str(caught.value)
    assert "this devicekit serves 1.1" in message
    for specifier in contract.split(","):
        assert specifier in message
    assert message.endswith(remedy)
    assert site.imported() == set()


def test_unmet_torch_and_vendor_requirements_are_all_named_before_import(site):
    site.package("vendor-runtime", "2.4.0")
    site.package("odd-runtime", "not-a-version")
    site.install(
        code="raise SystemExit('must not be imported')",
        torch=">=99",
        requires=[
            "vendor-runtime>=2.5",
            "absent-runtime>=1",
            "odd-runtime>=1",
            "unneeded; python_version<'3'",
        ],
    )
    with pytest.raises(IncompatibleBackend) as caught:
        devicekit.select("acme")
    message = str(caught.value)
    assert "torch>=99" in message
    assert "vendor-runtime 2.4.0 is installed" in message
    assert "absent-runtime>=1, which is not installed" in message
    assert "'not-a-version' is no version" in message
    assert "unneeded" not in message
    assert "pip install 'torch>=99' 'vendor-runtime>=2.5'" in message
    assert len(caught.value.problems) == 4


def test_a_met_vendor_requirement_lets_the_plugin_in(site):
    site.package("vendor-runtime", "2.5.1.post2")
    site.install(requires=["vendor-runtime>=2.5"])
    assert devicekit.get_device("acme").name == "acme"


def test_only_listed_distributions_are_imported(site, monkeypatch):
    site.install("acme", code="raise SystemExit('must not be imported')")
    site.install("other", distribution="Devicekit.Other", module="devicekit_other")
    monkeypatch.setenv("DEVICEKIT_ALLOWED_DISTRIBUTIONS", "devicekit_other, third")
    with pytest.raises(ConfigurationError, match="Add devicekit-acme to it"):
        devicekit.select("acme")
    selection = devicekit.select()
    assert selection.backend.name == "other"
    verdicts = {report.name: report.verdict.value for report in selection.candidates}
    assert verdicts == {"acme": "not allowed", "other": "chosen"}
    monkeypatch.setenv("DEVICEKIT_ALLOWED_DISTRIBUTIONS", "")
    with pytest.raises(ConfigurationError, match="may not be imported"):
        devicekit.select("other")


def test_a_name_can_be_registered_again_with_another_factory(register):
    with pytest.raises(InvalidHooks):
        register(object)
    devicekit.unregister_backend("acme")
    first = register(Required)
    devicekit.unregister_backend("acme")
    with pytest.raises(UnknownBackend):
        devicekit.get_device("acme")
    first.synchronize()  # a device that is open keeps working
    assert register(Required) is not first


def test_one_factory_object_may_serve_two_names(register):
    shared = Required()
    one, two = register(lambda: shared, name="one"), register(lambda: shared, name="two")
    assert (one.name, two.name) == ("one", "two")


def test_registering_a_taken_name_is_refused_with_the_way_out(register):
    register(object, open=False)
    manifest = Manifest.parse({"backend": {"name": "acme", "device_type": "cpu", "contract": ">=1"}})
    with pytest.raises(devicekit.DeviceKitError, match=r"unregister_backend\('acme'\)"):
        devicekit.register_backend(object, manifest)
