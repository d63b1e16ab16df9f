"""Every command, with wrong and missing arguments made from its own parser: a sentence, and never a traceback."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from devicekit.cli import _BUILT_IN, main
from devicekit.engine import Engine
from tests.docs.parsing import parser_of

COMMANDS = sorted(_BUILT_IN)
# What a command needs to come as far as its other arguments. {model}: a model directory; {scratch}: a folder.
BASE = {
    "top": ["--once"],
    "plot": ["{scratch}/none.jsonl", "-o", "{scratch}/picture.html"],
    "replay": ["{scratch}/none.jsonl"],
    "audit": ["{scratch}", "--no-cache"],
    "new-backend": ["acme", "-o", "{scratch}/new"],
    "example-model": ["{scratch}/example"],
    "generate": ["--model", "{model}", "--prompt", "a"],
    "serve": ["--model", "{model}", "--port", "0"],
    "info": [],
    "list": [],
    "demo": ["--model", "{model}", "--second-model", "{model}"],
}
NUMBERS = ("x", "", "-1", "nan", "1e999", "99999999999999999999")
TEXTS = ("", "/", "no/such\x01thing", "\u00e9" * 300)


class Started(BaseException):
    """The arguments were taken, and the work would begin. Not an Exception: no command catches it."""


def options_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if action.option_strings and action.nargs != 0 and not isinstance(action, argparse._HelpAction):
            yield action


def wrong_values(action: argparse.Action) -> tuple[str, ...]:
    return NUMBERS if action.type in (int, float) else TEXTS


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command; whatever it does with its arguments, it says so in words."""
    try:
        status = main(arguments)
    except Started:
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except Exception as error:
        pytest.fail(f"devicekit {arguments} ends in a traceback: {type(error).__name__}: {error}")
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert status == 0 or out or err, f"devicekit {arguments} ends with {status} and says nothing"


@pytest.fixture
def base(
    tmp_path: Path, checkpoints: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, list[str]]]:
    def started(*_: object, **__: object) -> None:
        raise Started

    monkeypatch.setattr(Engine, "open", started)
    monkeypatch.chdir(tmp_path)
    names = {"model": str(checkpoints[0]), "scratch": str(tmp_path)}
    return {command: [part.format(**names) for part in parts] for command, parts in BASE.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_no_parser_takes_is_told(
    command: str, base: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = parser_of(command)
    with pytest.raises(SystemExit) as ended:
        main([command, *base.get(command, []), "--no-such-option"])
    assert ended.value.code == 2
    assert "usage: devicekit" in capsys.readouterr().err
    if any(action.required for action in parser._actions):
        with pytest.raises(SystemExit) as ended:
            main([command])
        assert ended.value.code == 2
        assert "required" in capsys.readouterr().err
    for action in options_of(parser):
        if action.nargs is None:  # an option without its value
            with pytest.raises(SystemExit):
                main([command, *base.get(command, []), action.option_strings[0]])
            assert "expected one argument" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(BASE))
def test_wrong_values_are_told_in_words(
    command: str, base: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for action in options_of(parser_of(command)):
        for value in wrong_values(action):
            run([command, *base[command], f"{action.option_strings[-1]}={value}"], capsys)


@pytest.mark.parametrize("command", [*sorted(BASE.keys() - {"demo", "list", "info"})])
def test_wrong_files_and_names_are_told_in_words(
    command: str, base: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rubbish = tmp_path / "rubbish"
    rubbish.write_bytes(b"\x80\x00rubbish\n{")
    given = base[command]
    for place, part in enumerate(given):
        if not part.startswith("-"):
            for value in (str(rubbish), str(rubbish / "below"), str(tmp_path)):
                run([command, *given[:place], value, *given[place + 1 :]], capsys)


def _has_a_default(action: argparse.Action) -> bool:
    # nargs is 0 for a switch, which is off.
    return bool(action.option_strings) and not action.required and action.nargs != 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_means_and_its_default(command: str) -> None:
    parsers = [parser_of(command)]
    for action in parsers[0]._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers += action.choices.values()
    problems = []
    for parser in parsers:
        for action in parser._actions:
            if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
                continue
            name = action.option_strings[-1] if action.option_strings else action.dest
            if not action.help:
                problems.append(f"{name}: no help")
            elif _has_a_default(action) and "default" not in action.help:
                problems.append(f"{name}: no default in {action.help!r}")
    assert problems == []
