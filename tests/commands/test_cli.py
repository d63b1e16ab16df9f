"""The devicekit command as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from devicekit.cli import main
from devicekit.devtools import reference
from tools.warm import Warm


class Done(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Done]
DEVICEKIT = (sys.executable, "-m", "devicekit")


@pytest.fixture
def devicekit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    def run(*arguments: str, **environment: str) -> Done:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        status = main(arguments)
        return Done(status, *capsys.readouterr())

    return run


def test_help_lists_every_command_and_no_command_is_an_error(devicekit: Command) -> None:
    helped = devicekit("--help")
    assert helped.status == 0
    for command in ("list", "info", "demo", "generate"):
        assert f"  {command} " in helped.out
    assert devicekit().status == 2
    unknown = devicekit("lisst")
    assert unknown.status == 2
    assert "there is no command 'lisst'" in unknown.err


def test_list_imports_neither_torch_nor_a_plugin() -> None:
    code = (
        "import sys; from devicekit.cli import main; main(['list', '--json']);"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy', 'devicekit_cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed, _, modules = done.stdout.rpartition("\n[")
    assert modules == "]\n"
    (cpu,) = [row for row in json.loads(listed) if row["name"] == "cpu"]
    assert cpu["distribution"] == "devicekit-cpu"
    assert cpu["problem"] is None
    assert cpu["contract"] == ">=1.0,<2"  # as its manifest writes it


def test_info_explains_the_choice_and_names_missing_hooks(devicekit: Command) -> None:
    shown = devicekit("info", "--device", "cpu")
    assert shown.status == 0
    assert "'cpu' was asked for" in shown.out
    assert "create_stream: raises UnsupportedHook" in shown.out
    assert "memory_stats: answers None, for unknown" in shown.out
    document = json.loads(devicekit("info", "--device", "cpu", "--json").out)
    assert document["hooks"]["synchronize"] is True
    assert document["hooks"]["create_graph"] is False
    assert document["devices"][0]["allocator"]["allocated"] is None
    assert document["devices"][0]["memory"]["total"] > 2**28


def test_info_shows_how_a_pool_is_sized(devicekit: Command, checkpoints: tuple[Path, Path]) -> None:
    shown = devicekit("info", "--device", "cpu", "--plan", str(checkpoints[0]))
    assert shown.status == 0
    assert "512 B a token x 16 tokens = 8.0 KiB a page" in shown.out


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("info", "--device", "cuba"), {}, "No backend 'cuba' is installed"),
        (("info", "--device", "cpu:7"), {}, "has no device 7"),
        (("info",), {"DEVICEKIT_BACKEND": "hal9000"}, "No backend 'hal9000' is installed"),
        (("info",), {"DEVICEKIT_BACKENDS": "cpu"}, "Did you mean DEVICEKIT_BACKEND?"),
        (("info",), {"DEVICEKIT_RELEASE_FLUSH": "maybe"}, "DEVICEKIT_RELEASE_FLUSH='maybe': "),
        (("generate", "--model", "nowhere", "--prompt", "a"), {}, "no model directory at nowhere"),
        (("demo", "--model", "nowhere"), {}, "no model directory at nowhere"),
        (("demo", "--second-model", "x"), {}, "--second-model needs --model"),
    ],
)
def test_a_mistake_gets_one_clear_line(
    devicekit: Command, arguments: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    done = devicekit(*arguments, **environment)
    assert done.status == 1
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1


CLOSED = 'exec "$@" <&- >&- 2>&-'


@pytest.mark.parametrize("arguments", [("list",), ("list", "--json"), ("--help",), ("--version",)])
def test_a_full_disk_is_told_in_one_line(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*DEVICEKIT, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "could not be written: No space left on device" in line


def test_a_file_never_gets_what_was_meant_for_a_closed_stream(tmp_path: Path) -> None:
    code = (
        "import os, sys; from devicekit.cli import main; main(['--version']);"
        f"held = open({str(tmp_path / 'held')!r}, 'w'); status = main(['--help']);"
        "held.write(f'{held.fileno()} {status}')"
    )
    subprocess.run(["sh", "-c", CLOSED, "sh", sys.executable, "-c", code], check=True)
    number, status = (tmp_path / "held").read_text().split()
    assert int(number) > 2
    assert status == "0"


def test_a_key_is_hidden_where_nobody_reads_the_output() -> None:
    asked = [*DEVICEKIT, "serve", "--model", "nowhere", "--api-key", "secret"]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *asked], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "no model directory at nowhere" in line


def test_a_reader_that_leaves_is_not_taken_for_success() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as nobody:
        done = subprocess.run([*DEVICEKIT, "list"], stdout=nobody, stderr=subprocess.PIPE)
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr == b""


def test_generate_continues_a_prompt(devicekit: Command, checkpoints: tuple[Path, Path]) -> None:
    model = str(checkpoints[0])
    done = devicekit("generate", "--model", model, "--prompt", "Memory", "--max-new-tokens", "8")
    assert done.status == 0
    assert done.out.startswith("Memory")
    assert len(done.out) > len("Memory\n")
    again = devicekit("generate", "--model", model, "--prompt", "Memory", "--max-new-tokens", "8")
    assert again.out == done.out


def test_generate_without_a_tokenizer_says_so(
    devicekit: Command, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    for file in checkpoints[0].iterdir():
        if "token" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    done = devicekit("generate", "--model", str(tmp_path), "--prompt", "Memory")
    assert done.status == 1
    assert "has no tokenizer" in done.err


def test_the_demo_proves_its_tokens(devicekit: Command) -> None:
    done = devicekit("demo", "--device", "cpu")
    assert done.status == 0, done.out + done.err
    assert done.err == ""  # no library has anything to warn of
    for verb in ("pause in place", "update from disk", "continue", "flush, 120 s deadline"):
        assert verb in done.out
    assert "refused: Not idle: running=" in done.out
    for versions in ("v1", "v1 then v2", "v2"):
        assert f"made by weights {versions}\n" in done.out
    assert "Every token is the model's own" in done.out


def test_the_demo_takes_a_model_of_ones_own(devicekit: Command, checkpoints: tuple[Path, Path]) -> None:
    done = devicekit("demo", "--device", "cpu", "--model", str(checkpoints[0]))
    assert done.status == 0, done.out + done.err
    assert "Every token is the model's own" in done.out


def test_the_demo_fails_when_tokens_differ(devicekit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = reference.Oracle.tokens
    monkeypatch.setattr(reference.Oracle, "tokens", lambda *args: [token + 1 for token in expected(*args)])
    done = devicekit("demo", "--device", "cpu")
    assert done.status == 1
    assert "differs from token 0 on" in done.out
    assert "not the model's own" in done.out


@pytest.mark.parametrize(
    "line", [["generate", "--model", ".", "--prompt", "Pages"], ["info", "--device", "cpu", "--plan", "."]]
)
def test_a_command_whose_packages_are_missing_names_the_extra(
    warm: Warm, tmp_path: Path, line: list[str]
) -> None:
    code = "import sys; sys.modules['numpy'] = None; from devicekit.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [*warm.python, "-c", code, *line]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path)
    assert done.returncode == 1
    [said] = done.stderr.splitlines()
    assert said == f"devicekit {line[0]}: numpy is not installed: pip install 'devicekit[transformers]'"


FLEET = ("devicekit.fleet.app", "devicekit.fleet.http")


@pytest.mark.parametrize("package", ["httpx", "starlette"])
def test_a_fleet_without_one_of_its_packages_names_the_extra(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [one for one in sys.modules if one.split(".")[0] == package or one in FLEET]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["fleet", "--engine", "http://127.0.0.1:9", "status"]) == 1
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith(f"devicekit fleet: {package}")
    assert said.endswith(" is not installed: pip install 'devicekit[fleet]'")
