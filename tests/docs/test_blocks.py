"""Every fenced block of README and docs runs as it stands, or is marked with what it needs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from devicekit.cli import main
from devicekit.contract import Manifest
from tests.docs.blocks import CHECKOUT, PAGES, Block, blocks_of, commands_in, typed_in
from tests.docs.parsing import parse
from tools.warm import Warm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RUN_ELSEWHERE = {"flush.md": "tests/server/test_flush_page.py"}  # with an engine and a client of their own
CHEAP = {"list", "example-model", "generate", "new-backend"}  # commands that are run, not only parsed
_SIGNATURE = re.compile(r"\w+\([^\n]*\) -> [^\n]+\n")
_PORT = "30000"  # the server's default, as the pages have it
_MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))


def blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page) if block.language in languages]


def test_every_block_says_what_it_is() -> None:
    known = {"python", "bash", "console", "toml", "yaml", "json", "text", "diff"}
    assert [str(block) for page in PAGES for block in blocks_of(page) if block.language not in known] == []
    assert all(
        (CHECKOUT / test).exists() for page, test in RUN_ELSEWHERE.items() if (CHECKOUT / page).exists()
    )


# -- python -----------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_compiles(block: Block) -> None:
    text = block.text
    if _SIGNATURE.fullmatch(text):  # of a hook, on the page that lists them
        text = f"def {text.rstrip()}: ..."
    compile(text, str(block), "exec")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in RUN_ELSEWHERE], ids=lambda page: page.name
)
def test_python_runs_page_by_page(
    page: Path, warm: Warm, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, object] = {}
    for block in blocks_of(page):
        if block.language != "python" or _SIGNATURE.fullmatch(block.text):
            continue
        if block.needs == "torchrun":
            _run_as_only_rank(warm, block, scratch)
        if block.needs is not None:
            continue
        if not block.continues:
            names = {"__name__": "docs"}
        try:
            exec(compile(block.text, str(block), "exec"), names)
        except Exception as error:
            pytest.fail(f"{block} does not run as it stands: {type(error).__name__}: {error}")


def _run_as_only_rank(warm: Warm, block: Block, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ranks = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [*warm.python, "-c", block.text]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **ranks},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{block}: {done.stderr}"


@pytest.mark.parametrize("block", blocks("diff"), ids=str)
def test_diffs_are_parts_of_the_examples(block: Block) -> None:
    whole = [path.read_text() for path in (CHECKOUT / "examples").glob("*/*.diff")]
    assert any(block.text in one for one in whole), f"{block} is in no diff of examples/"


# -- commands ---------------------------------------------------------------


def shell_blocks() -> list[Block]:
    return blocks("bash", "console")


def words_of(block: Block) -> list[list[str]]:
    return commands_in(typed_in(block.text) if block.language == "console" else block.text)


@pytest.mark.parametrize("block", shell_blocks(), ids=str)
def test_commands_are_what_the_programs_take(block: Block) -> None:
    for words in words_of(block):
        problem = _problem(words, block)
        assert problem is None, f"{block}: {' '.join(words)}: {problem}"


def _problem(words: list[str], block: Block) -> str | None:
    """What is wrong with a command as printed, if anything."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    words = [word for word in words if word != "&"]
    match words:
        case []:
            return None
        case ["devicekit", *arguments]:
            return _refused(arguments)
        case ["torchrun", *arguments]:
            return _refused(arguments[arguments.index("devicekit") + 1 :])
        case ["pip", "install" | "wheel", *arguments]:
            return _not_installable(arguments)
        case ["cp", "-r", source, _]:
            return None if (CHECKOUT / source).exists() else "no such file"
        case ["make", target]:
            return None if target in _MAKE_TARGETS else "no such target"
        case ["python", "-m", module, *_]:
            return None if importlib.util.find_spec(module) else "no such module"
        case ["cd" | "export" | "pytest" | "curl", *_]:
            return None
        case _:
            return None if block.needs else "the test does not know it; mark the block with what it needs"


def _refused(arguments: list[str]) -> str | None:
    if arguments in (["--help"], ["--version"]):
        return None
    try:
        parse(arguments)
    except SystemExit as ended:
        return None if ended.code == 0 else "the command refuses these arguments"
    return None


def _not_installable(arguments: list[str]) -> str | None:
    """What is wrong with local paths and extras that pip is given."""
    for word in arguments:
        found = re.fullmatch(r"(devicekit|\.[\w./-]*)(?:\[([\w,]+)\])?(?: @ .*)?", word)
        if found is None:
            continue
        folder = CHECKOUT / (found[1] if found[1].startswith(".") else ".")
        if not (folder / "pyproject.toml").exists():
            return f"there is no project in {found[1]}"
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        wanted = set(filter(None, (found[2] or "").split(",")))
        if unknown := wanted - set(project.get("optional-dependencies", ())):
            return f"no such extra: {', '.join(unknown)}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_cheap_commands_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which they stand on the page, in a folder that is empty at first."""
    monkeypatch.chdir(tmp_path)
    for block in blocks_of(page):
        if block.language != "bash" or (block.needs and block.needs != "models"):
            continue
        for words in commands_in(block.text):
            if words[0] == "devicekit" and words[1] in CHEAP:
                if "models/v1" in words and not Path("models").exists():
                    assert main(["example-model", "models"]) == 0
                assert main(words[1:]) == 0, f"{block}: {' '.join(words)}"


# -- a server, and its clients ----------------------------------------------


def pages_with_servers() -> list[Path]:
    return [page for page in PAGES if any(block.needs == "server" for block in blocks_of(page))]


@pytest.mark.parametrize("served", pages_with_servers(), ids=lambda page: page.name, indirect=True)
def test_clients_are_answered_as_the_page_says(
    served: str, request: pytest.FixtureRequest, warm: Warm, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scratch / ".curlrc").write_text("fail-with-body\nno-progress-meter\n")  # a refusal is an exit status
    monkeypatch.setenv("CURL_HOME", str(scratch))
    monkeypatch.setenv("no_proxy", "*")
    page: Path = request.node.callspec.params["served"]
    for block in blocks_of(page):
        if block.needs != "server":
            continue
        text = block.text.replace(_PORT, served)
        program = [*warm.python, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
        done = subprocess.run(
            [*program, text], cwd=scratch, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{block}: {done.stdout}{done.stderr}"


# -- data -------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_toml_is_what_its_readers_take(block: Block) -> None:
    document = tomllib.loads(block.text)
    if "backend" in document:
        Manifest.parse(document)


@pytest.mark.parametrize("block", blocks("yaml", "json"), ids=str)
def test_data_parses(block: Block) -> None:
    read = json.loads if block.language == "json" else yaml.safe_load
    assert read(block.text)
