"""The plugins over the torch that is installed here, where no accelerator is: nothing raises or lies."""

from __future__ import annotations

import importlib

import pytest
import torch

from devicekit.contract import AllocatorState, HostMemoryStats
from devicekit.contract.errors import BackendUnavailable
from devicekit.contract.manifest import Manifest
from devicekit.registry import register_backend, select, unregister_backend
from devicekit.registry.candidates import Candidate
from devicekit.registry.validation import check_hooks
from tests.plugins.support import manifest_of

IN_TREE = ["cuda", "rocm", "xpu"]


@pytest.fixture(params=IN_TREE)
def backend(request: pytest.FixtureRequest) -> object:
    # Not torch.accelerator: to it the simulated accelerator, once imported, is one as well.
    if torch.cuda.is_available() or torch.xpu.is_available():
        pytest.skip("there is an accelerator here")
    return importlib.import_module(f"devicekit_{request.param}").Backend()


def test_the_backend_is_unavailable_and_says_so_quietly(backend) -> None:
    assert backend.is_available() is False
    assert backend.device_count() == 0
    assert backend.is_bad_fork() is False


def test_everything_that_may_be_asked_without_a_device_answers(backend) -> None:
    assert backend.memory_stats(0).state is AllocatorState.UNINITIALISED
    for hook, arguments in (
        ("empty_cache", ()),
        ("empty_host_cache", ()),
        ("collect_ipc", ()),
        ("reset_peak_memory_stats", (0,)),
        ("synchronize", (0,)),
    ):
        if (function := getattr(backend, hook)) is not None:
            assert function(*arguments) is None
    # The module of an old torch may lack some, which is asserted of its double.
    for hook, arguments, empty in (
        ("is_capturing", (0,), False),
        ("memory_snapshot", (0,), []),
        ("host_memory_stats", (), HostMemoryStats()),
    ):
        if (function := getattr(backend, hook)) is not None:
            assert function(*arguments) == empty


def test_using_the_missing_device_is_known_as_not_initialised(backend) -> None:
    with pytest.raises((AssertionError, RuntimeError)) as caught:  # built without, built with
        backend.current_stream(0)
    assert backend.classify_error(caught.value).value == "not_initialised"


@pytest.mark.parametrize("name", IN_TREE)
def test_asked_for_by_name_it_is_unavailable_and_not_replaced(name: str) -> None:
    """Under another name, since the plugin itself may be installed."""
    factory = importlib.import_module(f"devicekit_{name}").Backend
    table = {"name": f"{name}_again", "device_type": manifest_of(name).device_type, "contract": ">=1.0"}
    register_backend(factory, Manifest.parse({"backend": table}))
    try:
        with pytest.raises(BackendUnavailable, match="finds no hardware"):
            select(f"{name}_again")
    finally:
        unregister_backend(f"{name}_again")


@pytest.mark.parametrize("name", IN_TREE)
def test_the_plugin_stands_the_registrys_check(name: str) -> None:
    factory = importlib.import_module(f"devicekit_{name}").Backend
    check_hooks(factory(), Candidate(name, "test", "1", "test:Backend", manifest_of(name)))


@pytest.mark.parametrize("name", ["npu", "musa"])
def test_without_the_vendors_package_the_plugin_cannot_be_made(name: str) -> None:
    with pytest.raises(ImportError, match=f"torch_{name}"):
        importlib.import_module(f"devicekit_{name}").Backend()
