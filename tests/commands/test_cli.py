"""The devicekit command as a user meets it: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def devicekit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "devicekit.cli", *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_help_lists_every_command_and_no_command_is_an_error() -> None:
    helped = devicekit("--help")
    assert helped.returncode == 0
    for command in ("list", "info", "demo", "generate"):
        assert f"  {command} " in helped.stdout
    assert devicekit().returncode == 2
    unknown = devicekit("lisst")
    assert unknown.returncode == 2
    assert "there is no command 'lisst'" in unknown.stderr


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


def test_info_explains_the_choice_and_names_missing_hooks() -> None:
    shown = devicekit("info", "--device", "cpu")
    assert shown.returncode == 0
    assert "'cpu' was asked for" in shown.stdout
    assert "create_stream: raises UnsupportedHook" in shown.stdout
    assert "memory_stats: answers None, for unknown" in shown.stdout
    document = json.loads(devicekit("info", "--device", "cpu", "--json").stdout)
    assert document["hooks"]["synchronize"] is True
    assert document["hooks"]["create_graph"] is False
    assert document["devices"][0]["allocator"]["allocated"] is None
    assert document["devices"][0]["memory"]["total"] > 2**28


def test_info_shows_how_a_pool_is_sized(checkpoints: tuple[Path, Path]) -> None:
    shown = devicekit("info", "--device", "cpu", "--plan", str(checkpoints[0]))
    assert shown.returncode == 0
    assert "512 B a token x 16 tokens = 8.0 KiB a page" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("info", "--device", "cuba"), {}, "No backend 'cuba' is installed"),
        (("info", "--device", "cpu:7"), {}, "has no device 7"),
        (("info",), {"DEVICEKIT_BACKEND": "hal9000"}, "No backend 'hal9000' is installed"),
        (("info",), {"DEVICEKIT_BACKENDS": "cpu"}, "Did you mean DEVICEKIT_BACKEND?"),
        (("generate", "--model", "nowhere", "--prompt", "a"), {}, "no model directory at nowhere"),
        (("demo", "--model", "nowhere"), {}, "no model directory at nowhere"),
        (("demo", "--second-model", "x"), {}, "--second-model needs --model"),
    ],
)
def test_a_mistake_gets_one_clear_line(
    arguments: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    done = devicekit(*arguments, **environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_generate_continues_a_prompt(checkpoints: tuple[Path, Path]) -> None:
    model = str(checkpoints[0])
    done = devicekit("generate", "--model", model, "--prompt", "Memory", "--max-new-tokens", "8")
    assert done.returncode == 0
    assert done.stdout.startswith("Memory")
    assert len(done.stdout) > len("Memory\n")
    again = devicekit("generate", "--model", model, "--prompt", "Memory", "--max-new-tokens", "8")
    assert again.stdout == done.stdout


def test_generate_without_a_tokenizer_says_so(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    for file in checkpoints[0].iterdir():
        if "token" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    done = devicekit("generate", "--model", str(tmp_path), "--prompt", "Memory")
    assert done.returncode == 1
    assert "has no tokenizer" in done.stderr


def test_the_demo_proves_its_tokens(checkpoints: tuple[Path, Path]) -> None:
    done = devicekit("demo", "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    for verb in ("pause in place", "update from disk", "continue", "flush, 120 s deadline"):
        assert verb in done.stdout
    assert "refused: Not idle: running=" in done.stdout
    for versions in ("v1", "v1 then v2", "v2"):
        assert f"made by weights {versions}\n" in done.stdout
    assert "Every token is the model's own" in done.stdout


def test_the_demo_takes_a_model_of_ones_own(checkpoints: tuple[Path, Path]) -> None:
    done = devicekit("demo", "--device", "cpu", "--model", str(checkpoints[0]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every token is the model's own" in done.stdout


def test_the_demo_fails_when_tokens_differ(checkpoints: tuple[Path, Path]) -> None:
    code = (
        "import sys; from devicekit.commands import oracle, demo;"
        "first = oracle.Oracle.tokens;"
        "oracle.Oracle.tokens = lambda *a: [t + 1 for t in first(*a)];"
        "sys.exit(demo.main(['--device', 'cpu']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "differs from token 0 on" in done.stdout
    assert "not the model's own" in done.stdout
