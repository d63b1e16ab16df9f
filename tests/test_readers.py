"""Whatever lies where a file is expected, and whatever stands in it, reading it is an answer."""

from __future__ import annotations

import ast
import itertools
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.reader_catalogue import READERS, Reader
from tests.test_files import ODD

ROOT = Path(__file__).parents[1]
CORPUS = Path(__file__).parent / "corpus" / "readers"
_LIMIT = 5.0  # seconds: a reader that waits for somebody waits for ever


class Waits(BaseException):
    """A reader had not answered in time. No `Exception`: nobody may take it for the file's fault."""


@contextmanager
def answered_in_time() -> Iterator[None]:
    def late(*_: object) -> None:
        raise Waits

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, _LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read(reader: Reader, path: Path) -> None:
    told = "nothing"
    with answered_in_time():
        try:
            reader.read(path)
        except reader.refusals as error:
            told = str(error)
    assert told.strip()
    assert len(told) < 5000, "an error is to be read by somebody"


def read_content(reader: Reader, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, reader.name)
        path.write_bytes(content)
        read(reader, path)


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """Nobody is late for what is imported with the first reading."""
    _sound_of("configurations of models")


def _sound_of(what: str) -> None:
    for content in READERS[what].sound:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, READERS[what].name)
            path.write_bytes(content)
            READERS[what].read(path)


# Theirs are hostile from the start: nothing that fits in a line is sound.
_NEVER = {"pickles of tensors", "indexes of weights"}


@pytest.mark.parametrize("what", sorted(READERS.keys() - _NEVER))
def test_every_reader_reads_what_is_sound(what: str) -> None:
    """Otherwise what is said of the others says nothing."""
    _sound_of(what)


@pytest.mark.parametrize(("what", "kind"), [*itertools.product(READERS, ODD)])
def test_what_is_no_file_is_answered_and_not_waited_for(tmp_path: Path, what: str, kind: str) -> None:
    ODD[kind](tmp_path / READERS[what].name)
    read(READERS[what], tmp_path / READERS[what].name)


@pytest.mark.parametrize("what", READERS)
def test_a_file_larger_than_memory_is_answered_at_once(tmp_path: Path, what: str) -> None:
    path = tmp_path / READERS[what].name
    path.touch()
    os.truncate(path, 1 << 42)  # all of it a hole
    read(READERS[what], path)


# What broke one reader or another: each file is given to all of them.
@pytest.mark.parametrize("case", sorted(one.name for one in CORPUS.iterdir()))
@pytest.mark.parametrize("what", READERS)
def test_what_once_broke_a_reader_breaks_none(what: str, case: str) -> None:
    read_content(READERS[what], (CORPUS / case).read_bytes())


_DEEP_LIST: object = 1
for _ in range(150):
    _DEEP_LIST = [_DEEP_LIST]
_WILD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**400, 1e308, float("nan"), float("inf")]),
    st.text(max_size=5),
    st.sampled_from(["\ud800", "\0", "a" * 5000, "..", "/dev/zero", "1e999", "²"]),
    st.just([]),
    st.just({}),
    st.just([[1, 2], [3]]),
    st.just({"": {"": None}}),
    st.just(_DEEP_LIST),
)


@st.composite
def _changed(draw: st.DrawFn, document: object) -> object:
    """A document with something in it replaced, left out or added."""
    if isinstance(document, dict) and document and draw(st.integers(0, 5)):
        name = draw(st.sampled_from(sorted(document)))
        how = draw(st.integers(0, 6))
        rest = {key: value for key, value in document.items() if key != name}
        if how == 0:
            return rest
        if how == 1:
            return {**document, draw(st.text(max_size=4)): draw(_WILD)}
        return {**document, name: draw(_changed(document[name]))}
    if isinstance(document, list) and document and draw(st.integers(0, 5)):
        place = draw(st.integers(0, len(document) - 1))
        changed = [draw(_changed(document[place]))] if draw(st.integers(0, 4)) else []
        return [*document[:place], *changed, *document[place + 1 :]]
    return draw(_WILD)


@st.composite
def _bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Content with a span in it replaced, doubled, or by something that parsers trip over."""
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + 40)))
    middle = draw(
        st.one_of(
            st.binary(max_size=8),
            st.just(content[start:end] * 2),
            st.sampled_from(
                [
                    b"[" * 3000,
                    b"{" * 3000,
                    b'{"a":' * 2000,
                    b"9" * 5000,
                    b"a." * 3000,
                    b"\xff\xfe",
                    b"\0",
                    b"\r",
                ]
            ),
            st.sampled_from(
                [b"nan", b"-inf", b"1e999", b'"', b"'''", b"=", b"1979-05-27T07:32:00Z", b"true"]
            ),
        )
    )
    return content[:start] + middle + content[end:]


def _hostile(reader: Reader) -> st.SearchStrategy[bytes]:
    made = [_bytes(one) for one in reader.sound]
    for one in reader.sound:
        try:
            document = json.loads(one)
        except ValueError:
            continue
        made.append(_changed(document).map(lambda changed: json.dumps(changed).encode("utf-8")))
    return st.one_of(st.binary(max_size=40), *made)


def _fuzz(what: str, examples: int) -> None:
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(_hostile(READERS[what]))
    @example(b"")
    def run(content: bytes) -> None:
        read_content(READERS[what], content)

    run()


@pytest.mark.parametrize("what", READERS)
def test_no_content_is_more_than_a_refusal(what: str) -> None:
    _fuzz(what, 40)


@pytest.mark.thorough
@pytest.mark.parametrize("what", READERS)
def test_no_content_of_very_many_is_more_than_a_refusal(what: str) -> None:
    _fuzz(what, 3000)


_READS = {"read_text", "read_bytes", "open", "fromfile", "memmap", "safe_open"}
_LOADS = {"json.load", "pickle.load", "tomllib.load", "torch.load", "np.load", "numpy.load"}
# What is opened in this way is a room's own kind of thing, and no path.
_NO_FILES = {"Engine.open", "ModelDirectory.open", "WeightFile.open", "gate.open", "opener.open", "read_text"}
_WRITING = {"'w'", "'wb'", "'a'", "'x'"}
# Everything that reads files beside the catalogue's, and whose they are.
_KERNEL = "the kernel writes it"
_OWN = "comes with the package"
_SELF = "this process, or one that it started, has just written it"
_OTHERS = {
    "devicekit/documents.py: open(descriptor)": "a descriptor that was looked at",
    "devicekit/files.py: os.open(path)": "the room itself",
    "devicekit/files.py: open('/proc/self/mountinfo')": _KERNEL,
    "devicekit/contract/manifest_file.py: os.open(path)": ("lies below that room; in the catalogue"),
    "devicekit/fleet/lock.py: os.open(self._beside)": "a lock, looked at after",
    "devicekit/fleet/record.py: os.open(path.parent)": "a directory, of which nothing is read",
    "devicekit/runners/passing.py: os.open(path)": "a directory, of which nothing is read",
    "devicekit/registry/installed.py: distribution.read_text(_FILE)": "looked at before; in the catalogue",
    "devicekit/devtools/certify/child.py: request.read_text()": _SELF,
    "devicekit/devtools/certify/running.py: log.read_text()": _SELF,
    "devicekit/devtools/reference/noise.py: hf.safe_open(file)": "made by whoever runs this",
    "devicekit/devtools/scaffold/package.py: source.read_text()": _OWN,
    "devicekit/server/status.py: resources.files('devicekit.server').joinpath(name).read_text()": _OWN,
    "devicekit/torchlike/host.py: _MEMINFO.read_text()": _KERNEL,
    "devicekit/torchlike/properties.py: (devices / address / 'numa_node').read_text()": _KERNEL,
    "conformance/devicekit_conformance/first_use.py: open(reading)": _SELF,
    "conformance/devicekit_conformance/import_elsewhere.py: pickle.load(sys.stdin.buffer)": _SELF,
    "conformance/devicekit_conformance/large_pages.py: Path('/proc/self/maps').read_text()": _KERNEL,
    "conformance/devicekit_conformance/last_words.py: os.open(made.name)": _SELF,
    "conformance/devicekit_conformance/operators/sent.py: LIST.read_text()": _OWN,
    "conformance/devicekit_conformance/processes.py: (entry / 'stat').read_bytes()": _KERNEL,
    "conformance/devicekit_conformance/processes.py: Path(f'/proc/{pid}/comm').read_text()": _KERNEL,
    "conformance/devicekit_conformance/processes.py: path.read_text()": _KERNEL,
    "conformance/devicekit_conformance/report.py: path.read_bytes()": _OWN,
    "conformance/devicekit_conformance/rules/hygiene.py: statm.read_text()": _KERNEL,
    "conformance/devicekit_conformance/import_elsewhere.py: Path('/proc/self/maps').read_text()": _KERNEL,
    "conformance/devicekit_conformance/leaks.py: Path('/proc/self/statm').read_text()": _KERNEL,
    "conformance/devicekit_conformance/measures.py: Path('/proc/self/statm').read_text()": _KERNEL,
    "conformance/devicekit_conformance/selftest/catalogue.py: path.read_text()": _OWN,
    "conformance/devicekit_conformance/selftest/control_faults.py: path.read_text()": _SELF,
    "conformance/devicekit_conformance/wait_elsewhere.py: pickle.load(sys.stdin.buffer)": _SELF,
    "conformance/devicekit_conformance/selftest/matrix.py: FIRST_SIGHT.read_text()": _OWN,
    "conformance/devicekit_conformance/selftest/matrix.py: kept.read_text()": _SELF,
    "conformance/devicekit_conformance/selftest/matrix.py: path.read_text()": _SELF,
    "conformance/devicekit_conformance/selftest/refusals.py: arguments.json.read_text()": _SELF,
    "conformance/devicekit_conformance/trying.py: "
    "os.open(os.path.join(os.path.dirname(folder), f'{os.path.basename(folder)}.txt'))": _SELF,
    "plugins/cpu/devicekit_cpu/host_memory.py: Path('/proc/cpuinfo').read_text()": _KERNEL,
    "plugins/cpu/devicekit_cpu/host_memory.py: _MEMINFO.read_text()": _KERNEL,
    "plugins/cpu/devicekit_cpu/host_memory.py: _OWN_CGROUP.read_text()": _KERNEL,
    "plugins/cpu/devicekit_cpu/host_memory.py: path.read_text()": _KERNEL,
}


def _calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        written, arguments = ast.unparse(node.func), [*map(ast.unparse, node.args)]
        if (name not in _READS and written not in _LOADS) or written in _NO_FILES:
            continue
        if _WRITING.isdisjoint(arguments) and "os.devnull" not in arguments:
            yield f"{written}({', '.join(arguments[:1])})"


def test_nothing_opens_files_but_the_room_for_it() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): sorted(set(_calls(path)))
        for room in ("devicekit", "conformance/devicekit_conformance", "plugins")
        for path in sorted((ROOT / room).rglob("*.py"))
    }
    opened = {f"{file}: {call}" for file, calls in found.items() for call in calls}
    unknown = sorted(opened - _OTHERS.keys())
    assert not unknown, "read it with devicekit.documents or devicekit.files, and add it to reader_catalogue"
    assert not sorted(_OTHERS.keys() - opened), "these are gone"
