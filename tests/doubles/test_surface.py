"""Doubles do what the vendor does and no more, and what they are held to is what torch really has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.doubles import regenerate, static
from tests.doubles.surface import Surface, SurfaceError, strict_class, strict_module
from tests.doubles.vendors import FLAVOURS, build

OURS = ("cuda", "xpu", "mps", "mtia", "accelerator")


def _committed(name: str) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(
        (regenerate.FOLDER / f"{name}.json").read_text(encoding="utf-8")
    )
    return found


@pytest.mark.parametrize("name", OURS)
def test_the_recorded_names_are_those_of_the_installed_torch(name: str) -> None:
    version = torch.__version__.split("+")[0]
    record = _committed(name)
    assert version in record["absent"], "run python -m tests.doubles.regenerate --installed"
    fresh = regenerate.introspect(name)
    lacking = set(record["absent"][version])  # type: ignore[call-overload]
    for part in ("functions", "classes"):
        assert set(record[part]) - lacking == set(fresh[part]) & set(record[part])  # type: ignore[call-overload]
    if record["source"] == f"torch=={version}":
        assert record["functions"] == fresh["functions"]


@pytest.mark.parametrize("name", ["cuda", "xpu", "mps", "accelerator"])
def test_reading_sources_and_asking_the_running_module_agree(name: str) -> None:
    read = static.read_sources(Path(torch.__file__).parent.parent)
    by_source, by_asking = static.extract(name, read)["functions"], regenerate.introspect(name)["functions"]
    assert isinstance(by_source, dict)
    assert isinstance(by_asking, dict)
    written_in_c = {key for key, rows in by_asking.items() if rows is None}
    assert {k: v for k, v in by_source.items() if k not in written_in_c} == {
        k: v for k, v in by_asking.items() if k not in written_in_c
    }


def test_a_name_that_the_vendor_lacks_is_an_attribute_error() -> None:
    # It is called host_empty_cache there.
    assert not hasattr(build(FLAVOURS["npu"](None)).module, "empty_host_cache")
    assert not hasattr(build(FLAVOURS["xpu"](None)).module, "ipc_collect")
    assert hasattr(build(FLAVOURS["xpu"](None)).module, "MemPool")
    assert not hasattr(build(FLAVOURS["xpu"]("2.10.0")).module, "MemPool")


def test_wrong_arguments_are_a_type_error() -> None:
    npu = build(FLAVOURS["npu"](None)).module
    npu.init()
    assert npu.get_device_properties(0).name == "Ascend910B3"
    for call in (
        lambda: npu.get_device_properties(device=0),
        lambda: npu.empty_cache(0),
        lambda: npu.Stream(0, 0, 0),
    ):
        with pytest.raises(TypeError):
            call()
    musa = build(FLAVOURS["musa"](None)).module
    with pytest.raises(TypeError):
        musa.get_device_properties()
    with pytest.raises(TypeError):
        musa.Stream(0, 0).wait_event()


def test_a_real_function_that_is_not_modelled_says_so_when_called() -> None:
    with pytest.raises(NotImplementedError, match=r"torch\.cuda\.get_arch_list is real"):
        build(FLAVOURS["cuda"](None)).module.get_arch_list()


def test_a_double_cannot_invent_classes_or_methods() -> None:
    class Stream:
        def finish(self) -> None: ...

    with pytest.raises(SurfaceError, match="finish"):
        strict_class(Surface("xpu"), "Stream", Stream)
    with pytest.raises(SurfaceError, match="ExternalStream"):
        strict_module(Surface("xpu"), object(), {"ExternalStream": Stream})


def test_an_older_wheel_records_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "wheel" / "torch_npu" / "npu"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text(
        "from .memory import *\nfrom .streams import Stream as Stream\ndef synchronize(device=None): ...\n"
        "_is_in_bad_fork = getattr(c, '_npu_isInBadFork', lambda: False)\n"
    )
    (package / "memory.py").write_text("def empty_cache(): ...\nold = empty_cache\ndef _hidden(): ...\n")
    (package / "streams.py").write_text(
        "class Stream:\n    def __new__(cls, device=None): ...\n    def query(self): ...\n"
    )
    fresh = static.extract("npu", static.read_sources(tmp_path / "wheel"))
    assert fresh["functions"] == {
        "_is_in_bad_fork": [],
        "empty_cache": [],
        "old": [],
        "synchronize": [["device", "positional_or_keyword", True]],
    }
    assert fresh["classes"] == {
        "Stream": {"call": [["device", "positional_or_keyword", True]], "methods": {"query": []}}
    }
    monkeypatch.setattr(regenerate, "FOLDER", tmp_path)
    record = {"functions": {"empty_cache": [], "ipc_collect": []}, "classes": {}, "memory": {}, "absent": {}}
    (tmp_path / "npu.json").write_text(json.dumps(record))
    regenerate.merge("npu", fresh, "1.0", "test", only_absent=True)
    assert json.loads((tmp_path / "npu.json").read_text()) == {**record, "absent": {"1.0": ["ipc_collect"]}}
