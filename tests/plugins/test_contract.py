"""What each plugin implements, leaves out and claims, by version."""

from __future__ import annotations

import pytest
import torch

from devicekit.contract import CONTRACT_VERSION, HOOKS
from devicekit.device import Device
from devicekit.registry import Candidate, OpenedBackend
from devicekit.registry.validation import check_hooks, implemented_hooks
from tests.doubles.vendors import FLAVOURS
from tests.plugins.support import ABSENT, CASES, VENDORS, Bench, Make, manifest_of


def test_each_vendor_is_exercised_on_both_ends_of_its_range() -> None:
    assert set(CASES) == set(ABSENT)


def test_the_hooks_left_out_are_those_the_vendor_cannot_serve(bench: Bench) -> None:
    left_out = ABSENT[bench.name, bench.double.flavour.surface.version]
    # No double is made of torch itself: what its inside cannot tell or change, none of them can.
    for hook, inside in (("allocator_settings", "get"), ("set_allocator_setting", "set")):
        if not hasattr(torch._C, f"_accelerator_{inside}AllocatorSettings"):
            left_out = left_out | {hook}
    assert set(HOOKS) - implemented_hooks(bench.backend) == left_out


def test_the_class_has_what_the_newest_version_has(bench: Bench) -> None:
    """So that a table of support made from classes alone is true."""
    newest = [version for vendor, version in CASES if vendor == bench.name][-1]
    assert set(HOOKS) - implemented_hooks(type(bench.backend)) == ABSENT[bench.name, newest]


def test_the_registry_accepts_the_plugin_and_its_manifest(bench: Bench) -> None:
    check_hooks(bench.backend, _candidate(bench))


def test_manifest_and_hooks_say_the_same(bench: Bench) -> None:
    manifest = manifest_of(bench.name)
    assert manifest.collective_backend == bench.backend.collective_backend()
    assert manifest.visible_devices_variable == bench.backend.visible_devices_variable()
    assert manifest.device_type == bench.backend.vendor.device_type


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_manifest_admits_the_oldest_version_that_is_exercised(vendor: str) -> None:
    oldest = FLAVOURS[vendor](None).surface.versions[0]
    manifest = manifest_of(vendor)
    assert manifest.torch.contains(oldest)
    assert not manifest.torch.contains("2.6.0")
    assert all(requirement.specifier.contains(oldest) for requirement in manifest.requires)


def test_impersonators_of_torch_cuda_are_asked_before_cuda() -> None:
    order = sorted(VENDORS, key=lambda vendor: manifest_of(vendor).probe_order)
    assert {"musa", "npu", "rocm"} == set(order[: order.index("cuda")])


def test_a_hook_set_to_none_is_absent_for_registry_and_device(make: Make) -> None:
    bench = make("xpu", "2.7.1")
    device = _open(bench)
    assert not device.supports("collect_ipc")
    assert not device.collect_ipc()
    assert device.supports("empty_cache")
    assert device.torch_device == torch.device("xpu", 0)


@pytest.mark.parametrize("vendor", ["cuda", "rocm", "xpu"])
def test_a_device_speaks_to_the_vendor(vendor: str, make: Make) -> None:
    bench = make(vendor)
    device = _open(bench)
    handle = bench.driver.allocate(0, 5000)
    bench.driver.cards[0].give_back(handle)
    assert device.memory_stats().reserved == 2 * 1024**2
    assert device.empty_cache().released == 2 * 1024**2
    with device.current():
        bench.driver.submit(7.0)
    device.synchronize()
    assert bench.driver.now == 7.0


def test_every_quirk_is_named_once_explained_and_linked(bench: Bench) -> None:
    quirks = bench.backend.vendor.quirks
    assert len({quirk.name for quirk in quirks}) == len(quirks)
    for quirk in quirks:
        assert quirk.link.startswith("https://")
        assert quirk.sentence.endswith(".")


def test_switching_off_an_unknown_quirk_is_an_error(make: Make) -> None:
    with pytest.raises(ValueError, match="no quirk no-such-thing"):
        make("cuda", without_quirks=["no-such-thing"])


def _candidate(bench: Bench) -> Candidate:
    return Candidate(bench.name, "test", "1", "test:Backend", manifest_of(bench.name))


def _open(bench: Bench) -> Device:
    candidate = _candidate(bench)
    assert candidate.manifest is not None
    return Device(OpenedBackend(candidate, candidate.manifest, CONTRACT_VERSION, bench.backend), 0)
