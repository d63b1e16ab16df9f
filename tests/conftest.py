"""Shared by all tests: one thread, no DEVICEKIT_* setting, backends taken back, and small checkpoints."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import devicekit
from devicekit.contract import Manifest
from devicekit.testing import Simulator
from tests.programs import SLOW_IMPORTS
from tests.releases import left_out
from tests.simulated import requested
from tools.warm import Warm

gc.disable()  # nothing that is imported for the tests is garbage, and looking for some takes seconds


def pytest_collection_finish() -> None:
    gc.freeze()  # nor will it be later, whenever a test has everything looked through
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What an old torch cannot do is refused by name, and a test that meets the refusal is left out."""
    report = yield
    if report.failed and call.excinfo is not None and (reason := left_out(call.excinfo.value)) is not None:
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, f"Skipped: {reason}")
    return report


# As `drawn_seed`: a change must not be held up by what another one broke.
settings.register_profile("devicekit", derandomize=not os.environ.get("DRAW"), deadline=None, database=None)
settings.load_profile("devicekit")
torch.set_num_threads(1)  # the models are tiny: threads cost more than they bring
# A shell has these ignored in what it starts in the background, and so would be everything that a test starts.
for _one in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_one) is signal.SIG_IGN:
        signal.signal(_one, signal.default_int_handler if _one is signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two versions of one small Llama-style model."""
    from examples.checkpoints import write_example_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints")
    return (
        write_example_checkpoint(folder / "v1", seed=1),
        write_example_checkpoint(folder / "v2", seed=2),
    )


@pytest.fixture
def sim_machine(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    """A fresh simulated machine, of the configuration that the test is parametrised with, if any."""
    with requested(request) as machine:
        yield machine


@pytest.fixture
def sim_device(sim_machine: Simulator) -> Iterator[devicekit.Device]:
    """Device 0 of that machine, as engine code holds it."""
    from devicekit.testing.sim_backend import register

    register()
    yield devicekit.get_device("sim")
    devicekit.unregister_backend("sim")


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """For programs of which a test starts many, and does not care what they find imported."""
    with Warm(tmp_path_factory.mktemp("warm"), SLOW_IMPORTS) as one:
        yield one


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
