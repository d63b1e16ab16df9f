"""DeepSpeed's own tests of a device layer, run over devicekit's accelerator.

They are in no distribution of DeepSpeed's: ``DEEPSPEED_TESTS`` is the folder ``tests`` of its repository, of the
version that is installed. `make hosts` fetches it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.hosts.conftest import SIMULATED, Process, installed

SECONDS = 900.0  # for all of them, with an operator that is compiled: six minutes on a busy machine
FOLDER = os.environ.get("DEEPSPEED_TESTS")

ACTIVATED = """
import devicekit_deepspeed
ACCELERATOR = devicekit_deepspeed.activate()

def pytest_sessionfinish():
    from deepspeed.accelerator import get_accelerator
    assert get_accelerator() is ACCELERATOR
"""

# What asks the accelerator for streams, events, pinned memory and devices, and nothing else of DeepSpeed's.
_PINNING = "v1/accelerator/test_accelerator.py"
DEVICE_LAYER = (
    f"{_PINNING}::test_pin_memory_torch_backend",
    f"{_PINNING}::test_pin_memory_native_backend",
    f"{_PINNING}::test_pin_memory_native_raises_when_pin_memory_unavailable",
    f"{_PINNING}::test_is_pinned_handles_storageless_tensors",
    "runtime/activation_checkpointing/test_offload_activations.py",
)
# The rest that names the accelerator: why it is not run here, by the beginning of its path.
POOLS = "of the engine and its collectives, in pools of processes that choose their accelerator anew"
KERNELS = "compiles DeepSpeed's own kernels for one vendor"
REST = {
    _PINNING: "the others are of DeepSpeed's own classes",
    "v1/ops/": KERNELS,
    "v1/nvme/": "compiles DeepSpeed's file operators",
    "v1/pin_memory/": "compiles DeepSpeed's own pinning",
    "v1/compile/": "of the graph compiler's passes, over stand-ins for an accelerator",
    "v1/moe/": "of mixtures of experts, over a stand-in for an accelerator",
    "v1/": POOLS,
    "ops/": KERNELS,
    "sequence/": KERNELS,
    "inference/": KERNELS,
    "launcher/": "starts programs on several machines",
    "utils/test_nvtx.py": "of DeepSpeed's class for one vendor, from a source checkout",
    "": POOLS,
}


@installed("deepspeed")
@pytest.mark.skipif(FOLDER is None, reason="DEEPSPEED_TESTS names no checkout of DeepSpeed's tests")
def test_deepspeeds_own_tests_of_a_device_layer_pass(run: Process, tmp_path: Path) -> None:
    assert FOLDER is not None
    unit = Path(FOLDER).resolve() / "unit"
    plugin = tmp_path / "over_devicekit.py"
    plugin.write_text((SIMULATED if run.backend == "sim" else "") + ACTIVATED, encoding="utf-8")
    report = tmp_path / "report.xml"
    run.module(
        SECONDS, "pytest", "-p", "over_devicekit", "-p", "no:cacheprovider", "-c", str(unit.parent / "pytest.ini"),
        f"--rootdir={unit.parent}", f"--junitxml={report}", *(str(unit / one) for one in DEVICE_LAYER),
        PYTHONPATH=os.pathsep.join([str(tmp_path), str(unit.parent)]),
    )  # fmt: skip
    [suite] = ElementTree.parse(report).getroot().iter("testsuite")
    counted = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    assert counted["failures"] == counted["errors"] == 0
    assert counted["tests"] - counted["skipped"] >= 16
    # The host's processor has no streams, which DeepSpeed's tests skip by themselves.
    assert (counted["skipped"] > 0) == (run.backend == "cpu")


@pytest.mark.skipif(FOLDER is None, reason="DEEPSPEED_TESTS names no checkout of DeepSpeed's tests")
def test_what_is_not_run_in_one_process_is_of_something_else() -> None:
    """A test that needs no pool of processes and no kernel is run, or named beside its reason."""
    assert FOLDER is not None
    unit = Path(FOLDER) / "unit"
    alone = [
        path.relative_to(unit).as_posix()
        for path in sorted(unit.rglob("test_*.py"))
        if "get_accelerator" in (text := path.read_text(encoding="utf-8")) and "DistributedTest" not in text
    ]
    taken = {one.partition("::")[0] for one in DEVICE_LAYER}
    reasons = {
        path: next(why for start, why in REST.items() if path.startswith(start))
        for path in alone
        if path not in taken
    }
    assert taken <= set(alone)
    initialising = re.compile(r"deepspeed\.initialize|zero")
    unexplained = [path for path, why in reasons.items() if why is POOLS and not initialising.search(path)]
    assert unexplained == []
