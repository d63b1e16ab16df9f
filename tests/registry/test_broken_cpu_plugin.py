"""Breaks a copy of the real cpu plugin in each way a plugin breaks: each is named, and nothing stands in."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import devicekit
from devicekit.contract.errors import (
    BackendLoadError,
    DeviceKitError,
    IncompatibleBackend,
    InvalidHooks,
    ManifestError,
)

PLUGIN = Path(__file__).parents[2] / "plugins" / "cpu" / "devicekit_cpu"

Edit = Callable[[Path], None]


def _substitute(file: str, pattern: str, replacement: str) -> Edit:
    def edit(package: Path) -> None:
        path = package / file
        text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.DOTALL)
        assert count == 1, pattern
        path.write_text(text)

    return edit


BREAKAGES: dict[str, tuple[Edit, type[DeviceKitError], str]] = {
    "syntax error": (
        _substitute("backend.py", "class Backend:", "class Backend"),
        BackendLoadError,
        "could not be imported from .*SyntaxError: expected ':'",
    ),
    "missing dependency": (
        _substitute("backend.py", "import torch\n", "import torch_that_is_absent\n"),
        BackendLoadError,
        "could not be imported from .*ModuleNotFoundError: No module named 'torch_that_is_absent'",
    ),
    "raising at construction": (
        _substitute(
            "backend.py", "class Backend:", "class Backend:\n    def __init__(self): raise OSError('x')\n"
        ),
        BackendLoadError,
        "could not be constructed .*OSError: x",
    ),
    "missing hook": (
        _substitute("backend.py", r"    @hookimpl\n    def synchronize\(.*?\"\"\"\n\n", ""),
        InvalidHooks,
        r"the required hook synchronize\(index\) is missing",
    ),
    "undecorated hook": (
        _substitute("backend.py", r"@hookimpl\n    def synchronize", "def synchronize"),
        InvalidHooks,
        "synchronize is a hook of the contract but is not decorated",
    ),
    "misspelt hook": (
        _substitute("backend.py", "def empty_cache", "def empty_cahce"),
        InvalidHooks,
        r"empty_cahce is not a hook of the contract \(did you mean empty_cache\(\)\?\)",
    ),
    "wrong signature": (
        _substitute("backend.py", r"def synchronize\(self, index: int\)", "def synchronize(self)"),
        InvalidHooks,
        r"synchronize\(\) has the wrong signature: it must be synchronize\(index\)",
    ),
    "defaulted argument": (
        _substitute(
            "backend.py", r"def synchronize\(self, index: int\)", "def synchronize(self, index: int = 0)"
        ),
        InvalidHooks,
        "synchronize gives index a default",
    ),
    "contract too old": (
        _substitute("backend.toml", 'contract = ">=1.0,<2"', 'contract = ">=0.4,<1"'),
        IncompatibleBackend,
        r"contract >=0.4,<1, and this devicekit serves 1.1, 1.0. Try: pip install --upgrade devicekit-cpu$",
    ),
    "contract from the future": (
        _substitute("backend.toml", 'contract = ">=1.0,<2"', 'contract = ">=3.1"'),
        IncompatibleBackend,
        r"contract >=3.1, and this devicekit serves 1.1, 1.0. Try: pip install --upgrade devicekit$",
    ),
    "torch too old": (
        _substitute("backend.toml", 'torch = ">=2.7"', 'torch = ">=77"'),
        IncompatibleBackend,
        "it needs torch>=77, and torch .* is installed. Try: pip install 'torch>=77'",
    ),
    "unreadable manifest": (
        _substitute("backend.toml", r"\[backend\]", "[backend"),
        ManifestError,
        "backend.toml is not valid TOML",
    ),
    "misspelt manifest key": (
        _substitute("backend.toml", "probe_order", "probe_oder"),
        ManifestError,
        r"there is no key 'probe_oder' \(did you mean 'probe_order'\?\)",
    ),
    "unfounded claim": (
        _substitute("backend.toml", '"driver_memory"', '"graphs"'),
        InvalidHooks,
        "the manifest claims graphs, which needs create_graph",
    ),
    "raising probe": (
        _substitute("backend.py", "return True", "raise OSError('no driver')"),
        BackendLoadError,
        "failed while looking for its hardware: OSError: no driver",
    ),
    "lying probe": (
        _substitute("backend.py", "return 1", "return 0"),
        BackendLoadError,
        "contradicts the contract",
    ),
}


@pytest.fixture
def cpu(site) -> Path:
    """The cpu plugin of this repository, copied and installed as ``broken_cpu``, and another backend beside it."""
    package = site.path / "broken_cpu"
    shutil.copytree(PLUGIN, package)
    for module in package.glob("*.py"):
        module.write_text(module.read_text().replace("devicekit_cpu", "broken_cpu"))
    manifest = (package / "backend.toml").read_text()
    site.install("cpu", module="spare", manifest=manifest, target="broken_cpu:Backend", version="0.1.0")
    site.install("other", probe_order=2000, host=True)
    return package


def test_the_copy_works_before_it_is_broken(cpu):
    assert devicekit.get_device().name == "cpu"
    assert devicekit.get_device().empty_cache()


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_each_breakage_is_named_and_no_other_device_stands_in(cpu, site, breakage, monkeypatch):
    edit, kind, message = BREAKAGES[breakage]
    edit(cpu)
    for ask in (lambda: devicekit.get_device("cpu"), lambda: devicekit.get_device(), devicekit.select):
        with pytest.raises(kind) as caught:
            ask()
        assert type(caught.value) is kind
        assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)
    assert "devicekit_other" not in site.imported()


def test_no_two_breakages_share_a_message():
    expected = [message for _, _, message in BREAKAGES.values()]
    assert len(set(expected)) == len(expected)
