"""Weights come from one state of their files, whatever happens to these meanwhile, and never change afterwards."""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from devicekit.files import Stamp, SteadyFile
from devicekit.runners.checkpoint import ModelDirectory
from devicekit.runners.errors import InvalidModelDirectory
from devicekit.runners.weight_files import WeightFile, read_all

SHAPES = {"a": (3, 5), "b": (64,), "c": ()}


def _write(path: Path, value: float) -> None:
    save_file({f"{path.stem}.{name}": torch.full(shape, value) for name, shape in SHAPES.items()}, path)


def _checkpoint(folder: Path, value: float) -> list[Path]:
    folder.mkdir(exist_ok=True)
    files = [folder / "one.safetensors", folder / "two.safetensors"]
    for file in files:
        _write(file, value)
    return files


def _read(files: list[Path]) -> dict[str, torch.Tensor]:
    return read_all([WeightFile.open(file) for file in files])


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def _on_disk(files: list[Path]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("fresh", [True, False])
def test_what_is_wanted_of_each_tensor_is_kept_and_the_rest_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    files = _checkpoint(tmp_path, 3.0)
    if not fresh:  # left alone for long enough that its times tell whether it changed
        monkeypatch.setattr("devicekit.files._FRESH", 0.0)
        monkeypatch.setattr("devicekit.files._in_memory", lambda device: False)
    opened = [WeightFile.open(file) for file in files]
    whole: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def first_row(name: str, tensor: torch.Tensor) -> torch.Tensor:
        alive.append(sum(one() is not None for one in whole))
        whole.append(weakref.ref(tensor))
        return tensor.reshape(-1)[:1].clone()

    found = read_all(opened, first_row)
    assert _same(found, {name: tensor.reshape(-1)[:1] for name, tensor in _on_disk(files).items()})
    if not fresh:
        assert max(alive) <= 1  # the one before, at most


# -- Types ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    ],
    ids=str,
)
def test_tensors_of_every_type_and_shape_are_read_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    shapes = [(), (0,), (1,), (7, 3), (2, 0, 5), (1, 1, 1, 1)]
    given = {str(index): torch.randn(shape).mul(3).to(dtype) for index, shape in enumerate(shapes)}
    save_file(given, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = _read([tmp_path / "x.safetensors"])
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert (found[name].dtype, found[name].shape) == (dtype, tensor.shape)
        assert (
            found[name].reshape(-1).view(torch.uint8).tolist()
            == tensor.reshape(-1).view(torch.uint8).tolist()
        )


# -- A writer at every step -----------------------------------------------------------------------------------


def _overwrite(files: list[Path], spare: list[Path]) -> None:
    for file, other in zip(files, spare, strict=True):
        before = file.stat()
        shutil.copyfile(other, file)  # in place, as cp does
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _overwrite_first(files: list[Path], spare: list[Path]) -> None:
    _overwrite(files[:1], spare[:1])


def _overwrite_last(files: list[Path], spare: list[Path]) -> None:
    _overwrite(files[1:], spare[1:])


def _rename_over(files: list[Path], spare: list[Path]) -> None:
    for file, other in zip(files, spare, strict=True):
        other.rename(file)


def _truncate(files: list[Path], spare: list[Path]) -> None:
    os.truncate(files[1], files[1].stat().st_size - 100)


def _empty(files: list[Path], spare: list[Path]) -> None:
    os.truncate(files[0], 0)


def _remove(files: list[Path], spare: list[Path]) -> None:
    files[0].unlink()


def _pipe(files: list[Path], spare: list[Path]) -> None:
    files[1].unlink()
    os.mkfifo(files[1])


def _half(files: list[Path], spare: list[Path]) -> None:
    """A writer that has got half-way, and is still at it."""
    writer = files[0].open("r+b")
    writer.write(spare[0].read_bytes()[: files[0].stat().st_size // 2])
    writer.flush()
    _OPEN.append(writer)


_OPEN: list[object] = []
WRITERS = [
    _overwrite,
    _overwrite_first,
    _overwrite_last,
    _rename_over,
    _truncate,
    _empty,
    _remove,
    _pipe,
    _half,
]
STEPS = [
    (SteadyFile, "read_into"),
    (SteadyFile, "require_same"),
    (SteadyFile, "require_unchanged"),
    (Stamp, "at"),
]


class _At:
    """Calls ``act`` before the ``turn``-th of the steps of reading, or after the last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, turn: int, act: Callable[[], None]) -> None:
        self.count = 0
        for owner, name in STEPS:
            inner = getattr(owner, name)

            def step(*arguments: object, inner: Callable[..., object] = inner) -> object:
                if self.count == turn:
                    act()
                self.count += 1
                return inner(*arguments)

            monkeypatch.setattr(owner, name, step)


@pytest.mark.parametrize("writer", WRITERS, ids=lambda one: one.__name__)
def test_what_is_read_is_one_state_whatever_a_writer_does_at_whatever_step(
    tmp_path: Path, writer: Callable[[list[Path], list[Path]], None]
) -> None:
    refused = turn = 0
    while True:
        files, spare = _checkpoint(tmp_path / f"{turn}", 1.0), _checkpoint(tmp_path / f"{turn} new", 2.0)
        before = _on_disk(files)
        found: dict[str, torch.Tensor] | None = None
        with pytest.MonkeyPatch.context() as monkeypatch:
            steps = _At(monkeypatch, turn, lambda files=files, spare=spare: writer(files, spare))
            try:
                found = _read(files)
            except InvalidModelDirectory:
                refused += 1
        while _OPEN:
            _OPEN.pop().close()  # type: ignore[attr-defined]
        if steps.count <= turn:
            assert found is not None  # reading was over before the writer came
            break
        if found is not None and not _same(found, before):
            assert _same(found, _on_disk(files)), f"step {turn}: neither what was there nor what is"
        turn += 1
    assert turn > 10
    assert refused > turn // 3


def test_what_was_read_is_not_the_files_any_more(tmp_path: Path) -> None:
    files, spare = _checkpoint(tmp_path / "old", 1.0), _checkpoint(tmp_path / "new", 2.0)
    found = _read(files)
    _overwrite(files, spare)
    assert {float(one.flatten()[0]) for one in found.values()} == {1.0}
    os.truncate(files[0], 0)
    assert {float(one.sum()) / one.numel() for one in found.values()} == {1.0}
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path) not in maps.read_text()


# -- Headers --------------------------------------------------------------------------------------------------


def _file(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    announced = len(content) if length is None else length
    path.write_bytes(announced.to_bytes(8, "little") + content + data)
    return path


def _one(**entry: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **entry}}


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        (b"", b"", 2**63),
        (b"{}", b"", 3),
        (b"{}", b"", 100_000_001),
        (b"[]", b"", None),
        (b"nonsense", b"", None),
        (b"\xff\xff", b"", None),
        (b"[" * 100_000, b"", None),
        (b'{"a":' * 5000, b"", None),
        (b'{"a":{},"a":{}}', b"", None),
        (b'{"a":' + b"9" * 10_000 + b"}", b"", None),
        ({"a": 1}, b"", None),
        ({"a": {}}, b"", None),
        (_one(dtype="F7"), b"1234", None),
        (_one(dtype=["F32"]), b"1234", None),
        (_one(dtype="F4"), b"1234", None),
        (_one(shape=None), b"1234", None),
        (_one(shape=[1.0]), b"1234", None),
        (_one(shape=[True]), b"1234", None),
        (_one(shape=[-1]), b"1234", None),
        (_one(shape=[2**70]), b"1234", None),
        (_one(shape=[2**61, 2**61, 2**61]), b"1234", None),
        (_one(shape=[1] * 65), b"1234", None),
        (_one(shape=[2]), b"1234", None),
        (_one(data_offsets=[0, 4, 8]), b"1234", None),
        (_one(data_offsets=[4, 0]), b"1234", None),
        (_one(data_offsets=[4, 8]), b"12345678", None),
        (_one(data_offsets=[0, 4]), b"12345678", None),
        (_one(data_offsets=[0, 4]), b"123", None),
        (_one(data_offsets=[-4, 0]), b"1234", None),
        ({**_one(), "b": _one()["a"]}, b"1234", None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_header_that_makes_no_sense_is_refused(
    tmp_path: Path, header: object, data: bytes, length: int | None
) -> None:
    path = _file(tmp_path / "x.safetensors", header, data, length=length)
    with pytest.raises(InvalidModelDirectory, match="cannot be read as safetensors") as caught:
        WeightFile.open(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("content", [b"", b"1234567", b"\0" * 8])
def test_a_file_without_a_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InvalidModelDirectory, match="cannot be read as safetensors"):
        WeightFile.open(tmp_path / "x.safetensors")


@settings(max_examples=300)
@given(st.data())
def test_what_we_read_is_what_the_formats_own_library_reads(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A sound file with a few bytes changed: refused by both, or the same tensors for both."""
    path = tmp_path_factory.mktemp("changed") / "x.safetensors"
    _write(path, 1.0)
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header))] = data.draw(
            st.one_of(st.integers(0, 255), st.sampled_from(list(b'0123456789"[]{},:F ')))
        )
    path.write_bytes(bytes(content))
    try:
        theirs: dict[str, torch.Tensor] | None = _on_disk([path])
    except (SafetensorError, OSError):
        theirs = None
    try:
        ours: dict[str, torch.Tensor] | None = _read([path])
    except InvalidModelDirectory:
        ours = None
    if ours is not None:
        assert theirs is not None
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert torch.equal(
                tensor.reshape(-1).view(torch.uint8), theirs[name].reshape(-1).view(torch.uint8)
            )


# -- Whole directories ----------------------------------------------------------------------------------------


@pytest.fixture
def directory(checkpoints: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints[0], tmp_path / "model"))


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_no_file_of_a_model_is_waited_for(directory: Path, name: str, kind: str) -> None:
    (directory / name).unlink(missing_ok=True)
    {
        "pipe": os.mkfifo,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "directory": Path.mkdir,
    }[kind](directory / name)

    def read_everything() -> None:
        opened = ModelDirectory.open(directory)
        opened.read_weights()
        _ = opened.limits
        opened.tokenizer()

    with pytest.raises(Exception, match=r"is a |has no") as caught:
        read_everything()
    assert type(caught.value).__name__ in ("InvalidModelDirectory", "MissingTokenizer", "UnsupportedModel")


def test_a_config_that_was_replaced_after_it_was_read_is_noticed(directory: Path) -> None:
    opened = ModelDirectory.open(directory)
    (directory / "new").write_bytes((directory / "config.json").read_bytes())
    (directory / "new").rename(directory / "config.json")
    with pytest.raises(InvalidModelDirectory, match=r"config\.json was written to or replaced"):
        opened.read_weights()


def test_a_tokenizer_is_made_of_a_copy(directory: Path) -> None:
    made = ModelDirectory.open(directory).tokenizer()
    assert made.name_or_path == str(directory)


def test_a_full_disk_is_told(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Exception, match="No space left") as caught:
        ModelDirectory.open(directory)
    assert type(caught.value).__name__ == "UnsupportedModel" or isinstance(
        caught.value, InvalidModelDirectory
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 1e308),
        ("hidden_size", 10**30),
        ("hidden_size", -4),
        ("hidden_size", 0),
        ("vocab_size", 10**18),
        ("vocab_size", "many"),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 7),
        ("head_dim", 2**40),
        ("intermediate_size", None),
        ("rope_parameters", {"rope_type": "unheard of"}),
        ("model_type", ["llama"]),
        ("model_type", {}),
        ("layer_types", "full_attention"),
        ("architectures", 7),
        ("dtype", "float7"),
    ],
)
def test_a_config_with_absurd_numbers_is_an_error_of_ours(directory: Path, field: str, value: object) -> None:
    from devicekit.contract.errors import DeviceKitError
    from devicekit.runners import attention
    from devicekit.runners.loading import load_model

    attention.register()
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(DeviceKitError) as caught:
        load_model(ModelDirectory.open(directory), dtype=None)
    assert str(directory) in str(caught.value)
    assert len(str(caught.value)) < 1500
