from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from devicekit.contract import CAPABILITIES, CONTRACT_VERSION, HOOKS, Manifest
from devicekit.contract.errors import ManifestError

SMALLEST: dict[str, object] = {"name": "acme", "device_type": "npu", "contract": ">=1.0,<2"}


def test_the_smallest_manifest_has_these_defaults():
    manifest = Manifest.parse({"backend": SMALLEST})
    assert (manifest.name, manifest.device_type, str(manifest.contract)) == ("acme", "npu", "<2,>=1.0")
    assert (manifest.probe_order, manifest.indexed, manifest.host) == (100, True, False)
    assert manifest.collective_backend is None
    assert manifest.visible_devices_variable is None
    assert manifest.requires == manifest.hardware == ()
    assert manifest.noop == manifest.emulated == manifest.capabilities == manifest.optional == frozenset()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": None}, "name is required: a lower-case identifier"),
        ({"name": "Acme"}, "name is required: a lower-case identifier, not 'Acme'"),
        ({"name": "my-npu"}, "a lower-case identifier, not 'my-npu'"),
        ({"name": 3}, "name is required: a lower-case identifier, not 3"),
        ({"device_type": None}, "device_type is required"),
        ({"contract": None}, "contract is required: a version range such as"),
        ({"contract": "one"}, "contract is not a version range: 'one'"),
        ({"contract": 1.0}, "contract must be str, not 1.0"),
        ({"torch": ">=two"}, "torch is not a version range"),
        ({"requires": ["torch acme"]}, "requires: 'torch acme' is not a requirement"),
        ({"requires": "torch-acme"}, "requires must be a list of strings"),
        ({"probe_order": "first"}, "probe_order must be int"),
        ({"probe_order": True}, "probe_order must be int, not True"),
        ({"hardware": [1]}, "hardware must be a list of strings"),
        ({"collective_backend": 7}, "collective_backend must be str"),
        ({"noop": ["syncronize"]}, "noop: there is no hook 'syncronize' (did you mean 'synchronize'?)"),
        ({"emulated": ["zzz"]}, "emulated: there is no hook 'zzz'"),
        (
            {"capabilities": ["stream"]},
            "capabilities: there is no capability 'stream' (did you mean 'streams'?)",
        ),
        ({"optional": ["graph"]}, "optional: there is no capability 'graph' (did you mean 'graphs'?)"),
        ({"indexed": 1}, "indexed must be bool, not 1"),
        ({"host": "yes"}, "host must be bool"),
        ({"probe_oder": 1}, "there is no key 'probe_oder' (did you mean 'probe_order'?)"),
        ({"colour": 1}, "there is no key 'colour'"),
    ],
)
def test_each_fault_is_one_message(change, problem):
    # A range that ends with this contract: nothing can be of a newer one.
    closed = {"contract": f"<={CONTRACT_VERSION}"}
    table = {key: value for key, value in (SMALLEST | closed | change).items() if value is not None}
    with pytest.raises(ManifestError) as caught:
        Manifest.parse({"backend": table})
    assert len(caught.value.problems) == 1
    assert problem in caught.value.problems[0]
    assert caught.value.problems[0] in str(caught.value)


def test_all_faults_are_reported_at_once():
    with pytest.raises(ManifestError) as caught:
        Manifest.parse({"backend": {"name": "acme", "indexed": 0, "colour": 1, "noop": ["a", "b"]}, "x": 1})
    assert len(caught.value.problems) == 7
    assert caught.value.backend == "acme"


@pytest.mark.parametrize("document", [{}, {"backend": 3}, {"Backend": SMALLEST}])
def test_a_manifest_without_its_table_says_so(document):
    with pytest.raises(ManifestError, match=r"no \[backend\] table"):
        Manifest.parse(document)


def test_a_key_above_the_table_is_not_ignored():
    with pytest.raises(ManifestError, match=r"'torch' stands outside the \[backend\] table"):
        Manifest.parse({"torch": ">=2", "backend": SMALLEST})


@pytest.mark.parametrize("content", [None, b"[backend", b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content):
    path = tmp_path / "backend.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ManifestError, match=r"backend\.toml"):
        Manifest.read(path)


JUNK = [None, True, -1, 1.5, "", "\x00", "x y", [], [None], ["x"], [["x"]], {}, {"a": 1}, float("nan")]


@pytest.mark.parametrize("key", Manifest.__dataclass_fields__)
@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_whatever_a_key_holds_the_manifest_is_read_or_refused(key, junk):
    with contextlib.suppress(ManifestError):
        manifest = Manifest.parse({"backend": SMALLEST | {key: junk}})
        assert manifest.noop | manifest.emulated <= HOOKS.keys()
        assert manifest.capabilities <= CAPABILITIES.keys()


def test_a_manifest_in_code_takes_the_spelling_of_the_file() -> None:
    spelled = Manifest(
        name="acme",
        device_type="cpu",
        contract=">=1.0,<2",  # type: ignore[arg-type]  # what a file says
        torch=">=2.7",  # type: ignore[arg-type]
        noop=["synchronize"],  # type: ignore[arg-type]
        capabilities=["rng_state"],  # type: ignore[arg-type]
    )
    table = {"name": "acme", "device_type": "cpu", "contract": ">=1.0,<2", "torch": ">=2.7"}
    read = Manifest.parse({"backend": {**table, "noop": ["synchronize"], "capabilities": ["rng_state"]}})
    assert spelled == read
    with pytest.raises(ManifestError, match="synchronise"):
        Manifest("acme", "cpu", ">=1.0,<2", noop=["synchronise"])  # type: ignore[arg-type]


def test_a_byte_order_mark_is_named(tmp_path) -> None:
    path = tmp_path / "backend.toml"
    path.write_bytes(b'\xef\xbb\xbf[backend]\nname = "acme"\n')
    with pytest.raises(ManifestError, match=r"byte order mark \(line 1\): save it as plain UTF-8"):
        Manifest.read(path)
