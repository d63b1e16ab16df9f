"""Whatever is installed, set or written in a manifest: each fault is one candidate's, and has a typed error."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap

import pytest

import devicekit
from devicekit.contract.environment import VARIABLES, check_environment
from devicekit.contract.errors import BrokenDistribution, ConfigurationError, DeviceKitError, ManifestError
from devicekit.contract.manifest import Manifest
from devicekit.contract.manifest_file import MOST_BYTES
from devicekit.registry.selection import select
from tests.seeds import drawn_seed

SEED = drawn_seed("BROKEN_SEED")
DRAWS = 60
HEAD = '[backend]\nname = "acme"\ndevice_type = "cpu"\ncontract = ">=1.0,<2"\nindexed = false\n'


@pytest.fixture(autouse=True)
def _seeded():
    print(f"seed {SEED}")


def printable(error: DeviceKitError | None) -> bool:
    text = str(error)
    text.encode("utf-8")
    return len(text) < 3000


JUNK = [b"\xff\xfe", b"\x00", b"=", b"\n", b"[", b"]", b"\xed\xa0\x80", b"\r", b"::", b"= =\n", b"\x1b[2J"]
JUNK += [b"[x]\n", b" " * 500, "\N{SNOWMAN}".encode(), b"#", b"\n novalue \n", b"=x:y\n"]


def spoiled(rng: random.Random, content: bytes) -> bytes:
    """``content`` after a few accidents."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(content))
        junk = rng.choice([*JUNK, bytes([rng.randrange(256)])])
        content = content[:at] + junk + content[at + rng.choice([0, 0, 1, 7]) :]
    return content


def test_spoiled_metadata_is_a_verdict_of_its_distribution_and_hides_nobody(site):
    site.install("sound")
    site.install("acme")
    info = site.path / "devicekit_acme-1.0.dist-info"
    files = {name: (info / name).read_bytes() for name in ("METADATA", "entry_points.txt")}
    manifest = site.path / "devicekit_acme" / "backend.toml"
    rng = random.Random(SEED)
    for _ in range(DRAWS):
        for name, content in files.items():
            (info / name).write_bytes(spoiled(rng, content) if rng.random() < 0.7 else content)
        manifest.write_bytes(spoiled(rng, HEAD.encode()) if rng.random() < 0.3 else HEAD.encode())
        by_name = {one.name: one for one in devicekit.discover()}
        assert by_name["sound"].error is None or "acme" in str(by_name["sound"].error)
        assert all(one.error is None or printable(one.error) for one in by_name.values())
        if by_name["sound"].error is None:
            assert select("sound").backend.name == "sound"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("acme", "gives no value"),
        ("acme =", "gives no value"),
        ("= devicekit_acme:Backend", "gives no name"),
        ("acme = 9:x", "no 'module:attribute'"),
        ("acme = devicekit acme", "no 'module:attribute'"),
        ("acme = a:b:c", "no 'module:attribute'"),
        ("\u00b2 = ..:..", "no 'module:attribute'"),
    ],
)
def test_a_bad_entry_point_is_named_with_file_and_line(site, line, said):
    site.install("sound")
    site.install("acme")
    file = site.path / "devicekit_acme-1.0.dist-info" / "entry_points.txt"
    file.write_text(f"[other]\na = b\n[devicekit.backends]\n{line}\n", encoding="utf-8")
    [broken] = [one for one in devicekit.discover() if one.name != "sound"]
    assert isinstance(broken.error, BrokenDistribution)
    assert said in str(broken.error)
    assert "line 4 of its entry_points.txt" in str(broken.error)
    assert str(file.parent) in str(broken.error)
    assert "devicekit-acme" in str(broken.error)
    assert select("sound").backend.name == "sound"


@pytest.mark.parametrize(
    "stale", ["", "[console_scripts]\nx = y:z\n", "[devicekit.backends]\nacme = gone:Backend\n"]
)
@pytest.mark.parametrize(
    "metadata", ["Metadata-Version: 2.1\nName: devicekit-acme\nVersion: 0.9\n", "", "\xff"]
)
def test_metadata_that_hides_a_plugin_is_named_with_both_folders(
    site, tmp_path, monkeypatch, stale, metadata
):
    site.install("acme")
    before = tmp_path / "before"
    husk = before / "devicekit_acme-0.9.dist-info"
    husk.mkdir(parents=True)
    (husk / "METADATA").write_bytes(metadata.encode("latin-1"))
    (husk / "entry_points.txt").write_text(stale)
    monkeypatch.syspath_prepend(before)
    errors = [one.error for one in devicekit.discover() if isinstance(one.error, BrokenDistribution)]
    assert len(errors) == 1
    assert str(husk) in str(errors[0])
    assert str(site.path / "devicekit_acme-1.0.dist-info") in str(errors[0])


def documents(rng: random.Random):
    """Manifests of many sizes and shapes, by what is odd about each."""
    deep = rng.choice([200, 5_000, 30_000])
    digits = rng.choice([20, 4_400, 20_000])
    yield "deep arrays", HEAD + "x = " + "[" * deep + "]" * deep
    yield "deep tables", HEAD + "x = " + "{a=" * deep + "1" + "}" * deep
    yield "deep keys", HEAD + ".".join("a" * deep) + " = 1"
    yield "long number", HEAD + "probe_order = " + "9" * digits
    yield "long hexadecimal", HEAD + "probe_order = 0x" + "f" * digits
    yield "long name", HEAD.replace('"acme"', '"' + "a" * digits + '"')
    yield "hexadecimal name", HEAD.replace('"acme"', "0x" + "f" * digits)
    yield "long text", HEAD + 'collective_backend = "' + "x" * digits + '"'
    yield "many names", HEAD + f"capabilities = {['x' * 9] * (digits // 20)}"
    yield "many keys", HEAD + "\n".join(f"k{one} = {one}" for one in range(digits // 10))
    yield "many tables", HEAD + "\n".join(f"[t{one}]" for one in range(digits // 10))
    yield "huge", HEAD + "#" * (MOST_BYTES + digits)
    yield "wild paths", HEAD + 'hardware = ["' + "/*" * 40 + '"]'
    yield "relative paths", HEAD + 'hardware = ["**"]'
    yield "null path", HEAD + 'hardware = ["/dev/\\u0000"]'
    yield "requirement", HEAD + 'requires = ["a ; ' + "(" * deep + '"]'
    yield "marker", HEAD + """requires = ["a ; python_version < 'x' and extra == 'q'"]"""
    yield "url", HEAD + 'requires = ["a @ file:///dev/zero"]'
    yield "range", HEAD + 'torch = "' + ">=1," * (digits // 5) + '>=1"'
    yield "arbitrary range", HEAD.replace(">=1.0,<2", "===" + "x" * digits)
    yield "dates", HEAD + "host = 1979-05-27T07:32:00Z"
    yield "infinity", HEAD + "probe_order = inf"
    yield "control characters", HEAD.replace("acme", "ac\\u001b[2Jme")
    yield "surrogate", HEAD.replace("acme", "ac\\ud800me")


def test_a_manifest_of_any_size_and_shape_is_read_or_refused_with_its_file(site):
    site.install("sound")
    rng = random.Random(SEED)
    for what, text in documents(rng):
        site.install("acme", manifest=text)
        path = site.path / "devicekit_acme" / "backend.toml"
        by_name = {one.name: one for one in devicekit.discover()}
        error = by_name["acme"].error
        assert by_name["sound"].error is None
        assert error is None or (isinstance(error, ManifestError) and printable(error)), what
        assert error is None or str(path) in str(error), what
        try:
            select("acme")
        except DeviceKitError as refusal:
            unprintable = [] if printable(refusal) else [refusal]
            assert unprintable == [], what


@pytest.mark.parametrize("shape", ["pipe", "folder", "link to itself", "link to zeros"])
def test_a_manifest_that_is_no_file_is_refused_and_nothing_waits(tmp_path, shape):
    path = tmp_path / "backend.toml"
    if shape == "pipe":
        os.mkfifo(path)
    elif shape == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if shape == "link to itself" else "/dev/zero")
    with pytest.raises(ManifestError, match=r"backend\.toml"):
        Manifest.read(path)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("probe_order", '"first"', 7),
        ("noop", '["syncronize"]', 8),
        ("indexxed", "1", 9),
        ("requires", '["a b"]', 7),
    ],
)
def test_a_fault_of_a_key_names_its_line(tmp_path, key, value, line):
    path = tmp_path / "backend.toml"
    text = HEAD.replace("indexed = false\n", "") + "# a comment\n" * (line - 5) + f"{key} = {value}\n"
    path.write_text(text)
    with pytest.raises(ManifestError) as caught:
        Manifest.read(path)
    said = str(caught.value)
    assert f"line {line}: {key}" in said or f"line {line}: there is no key '{key}'" in said
    assert str(path) in said


ODD = [
    "",
    " ",
    ",",
    "npu:",
    ":1",
    "npu:" + "9" * 5000,
    "\udcff",
    "\x1b[2J",
    "a" * 100_000,
    "nan",
    "inf",
    "-1",
    "1e400",
]
ODD += [
    "9" * 400,
    "0",
    "cuda:0:1",
    "\N{SNOWMAN}",
    "None",
    "true",
    "1_0",
    "1e-400",
    "yes\n",
    "../..",
    "*",
    "9e18",
]


JUDGED = [
    "DEVICEKIT_BACKEND",
    "DEVICEKIT_POLICY",
    "DEVICEKIT_ALLOWED_DISTRIBUTIONS",
    "DEVICEKIT_PROBE_TIMEOUT",
]
OTHER = [*(VARIABLES.keys() - JUDGED), "DEVICEKIT_BAKEND", "DEVICEKIT_\udcff", "DEVICEKIT_" + "X" * 9999]


@pytest.mark.parametrize("variable", JUDGED)
def test_a_variable_of_any_content_is_honoured_or_refused_with_a_message_that_can_be_printed(
    site, monkeypatch, variable
):
    site.install("sound")
    refusals = []
    for value in ODD:
        monkeypatch.setenv(variable, value)
        try:
            select()
        except DeviceKitError as error:
            refusals.append(error)
    assert [one for one in refusals if not printable(one) or type(one) is DeviceKitError] == []


def test_the_name_of_a_variable_may_be_anything():
    refusals = []
    for name in OTHER:
        try:
            check_environment({name: "\udcff"})
        except ConfigurationError as error:
            refusals.append(error)
    assert len(refusals) == 3
    assert all(map(printable, refusals))


LISTED = ["devicekit-sund", "Devicekit_Sund", "x, devicekit-sund ,", "devicekit-sound,devicekit-sund"]


@pytest.mark.parametrize("listed", LISTED)
def test_an_allowed_name_that_nothing_has_is_named_with_the_nearest(site, monkeypatch, listed):
    site.install("sound")
    monkeypatch.setenv("DEVICEKIT_ALLOWED_DISTRIBUTIONS", listed)
    try:
        said = select("sound").explain()
    except ConfigurationError as error:
        said = str(error)
    assert "sund" in said.lower()
    assert "Did you mean 'devicekit-sound'?" in said


def test_a_request_names_a_backend_or_a_device_type(site):
    """As on a ROCm machine: the backend "cuda" is installed too, and finds nothing."""
    gone = "from devicekit import hookimpl\n" + textwrap.dedent(
        """
        class Backend:
            @hookimpl
            def is_available(self): return False
            @hookimpl
            def device_count(self): return 0
            @hookimpl
            def synchronize(self, index): pass
        """
    )
    site.install("meta", code=gone, device_type="meta")
    site.install("other", device_type="meta")
    site.install("third", device_type="meta", code=gone)
    assert select("meta").backend.name == "other"
    assert devicekit.get_device("meta:0").name == "other"
    site.install("other", device_type="meta", code=gone, distribution="devicekit-other2", automatic=False)
    site.install("vendor", code=gone, device_type="odd")
    with pytest.raises(DeviceKitError, match="vendor"):
        select("odd")


FIRST_CAUSE = """
import devicekit, sys
from devicekit.registry.selection import select
said = set()
for _ in range(3):
    for ask in (lambda: devicekit.get_device("sound"), lambda: select("sound"), lambda: devicekit.Device):
        try:
            ask()
        except devicekit.DeviceKitError as error:
            said.add("libacme.so.7" in str(error))
for name in ("sound", "second"):
    try:
        select(name)
    except devicekit.DeviceKitError as error:
        said.add("libacme.so.7" in str(error))
print(said)
"""


@pytest.mark.parametrize(
    "code",
    [
        "raise OSError('libacme.so.7: cannot open')",
        "import sys; sys.exit('libacme.so.7')",
        "raise KeyError('libacme.so.7')",
    ],
)
def test_the_first_failure_of_importing_torch_is_what_every_candidate_reports(site, child_environment, code):
    site.install("sound", code="import torch\nraise AssertionError('a second import of torch')")
    site.install("second", code="import torch\nraise AssertionError('a second import of torch')")
    (site.path / "badext.py").write_text(code)
    info = site.path / "badext-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: badext\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\nacme = badext:go\n")
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CAUSE],
        env=child_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "{True}", done.stdout + done.stderr
