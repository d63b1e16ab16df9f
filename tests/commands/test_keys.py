"""Keys of a server: from the environment, a file or an option, and seen by nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from devicekit.cli import main
from devicekit.commands.keys import KEY_OPTIONS, key, split
from devicekit.contract.errors import ConfigurationError
from devicekit.server.settings import ServerSettings
from tests.programs import Program
from tools.warm import Warm

SECRET = "kingfisher-4711"


@contextmanager
def _serving(python: list[str], model: Path, *options: str, **environ: str) -> Iterator[tuple[Program, str]]:
    command = [*python, "-m", "devicekit.cli", "serve", "--model", str(model), "--device", "cpu"]
    with Program(
        [*command, "--port", "0", "--kv-tokens", "512", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environ},
    ) as process:
        yield process, process.address()
        process.send_signal(signal.SIGTERM)
        assert SECRET not in process.communicate(timeout=30)[0]


def _asked(url: str, path: str, given: str | None = None) -> httpx.Response:
    headers = {} if given is None else {"Authorization": f"Bearer {given}"}
    return httpx.get(f"{url}{path}", headers=headers, trust_env=False, timeout=30)


@pytest.mark.parametrize(
    ("way", "option"), [("environment", "--api-key"), ("file", "--admin-api-key"), ("option", "--api-key")]
)
def test_a_key_locks_the_server_and_is_not_to_be_seen(
    warm: Warm, checkpoints: tuple[Path, Path], tmp_path: Path, option: str, way: str
) -> None:
    (tmp_path / "key").write_text(f"{SECRET}\n")
    options, environ = {
        "environment": ((), {KEY_OPTIONS[option]: SECRET}),
        "file": ((f"{option}-file", str(tmp_path / "key")), {}),
        "option": ((option, SECRET), {}),
    }[way]
    # Its own interpreter, where what others see of its command line matters.
    python = [sys.executable] if way == "option" else warm.python
    with _serving(python, checkpoints[0], *options, **environ) as (process, url):
        assert _asked(url, "/flush_cache").status_code == 401
        assert _asked(url, "/flush_cache", "wrong").status_code == 401
        assert _asked(url, "/flush_cache", SECRET).status_code == 200
        for path in ("/server_info", "/status", "/", "/metrics", "/openapi.json", "/v1/loads"):
            answer = _asked(url, path, SECRET)
            assert answer.status_code == 200
            assert SECRET not in answer.text
        if way == "option" and Path("/proc/self/cmdline").exists():
            assert SECRET.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()


def test_the_options_that_hold_a_key_are_told_from_the_rest() -> None:
    rest, keys = split(["--port", "1", "--api-key", "a", "--admin-api-key=b=c", "--api-key-file", "f"])
    assert rest == ["--port", "1", "--api-key-file", "f"]
    assert keys == {"DEVICEKIT_API_KEY": "a", "DEVICEKIT_ADMIN_API_KEY": "b=c"}
    assert split(["--api-key"]) == (["--api-key"], {})


def test_an_option_wins_over_the_environment_which_is_not_handed_on() -> None:
    environ = {"DEVICEKIT_API_KEY": "inherited"}
    assert key("--api-key", "given", None, environ) == "given"
    assert environ == {}
    assert key("--api-key", None, None, environ) is None


@pytest.mark.parametrize("value", ["", " ", "\n"])
def test_a_variable_that_turned_out_empty_opens_nothing(value: str) -> None:
    with pytest.raises(ConfigurationError, match="DEVICEKIT_API_KEY is empty"):
        key("--api-key", None, None, {"DEVICEKIT_API_KEY": value})


def test_a_key_is_given_once(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a")
    for given, environ in (("a", {}), (None, {"DEVICEKIT_API_KEY": "a"})):
        with pytest.raises(ConfigurationError, match="given twice"):
            key("--api-key", given, tmp_path / "key", environ)


def _missing(path: Path) -> None:
    pass


def _empty(path: Path) -> None:
    path.write_text(" \n")


def _binary(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")


def _long(path: Path) -> None:
    path.write_text("a" * 5000)


@pytest.mark.parametrize(
    "make", [_missing, _empty, _binary, _long, Path.mkdir, os.mkfifo], ids=lambda one: one.__name__
)
def test_a_file_that_holds_no_key_is_told_as_that(tmp_path: Path, make: object) -> None:
    make(tmp_path / "key")  # type: ignore[operator]
    with pytest.raises(ConfigurationError, match="key"):
        key("--api-key", None, tmp_path / "key", {})


@pytest.mark.parametrize("wrong", [" a", "a ", "a\nb", "a\0", "\x7f"])
def test_a_key_that_no_header_can_carry_is_told_at_once(wrong: str) -> None:
    for name in ("api_key", "admin_api_key"):
        with pytest.raises(ConfigurationError, match=f"{name} .*header"):
            ServerSettings(**{name: wrong})


def test_settings_do_not_show_their_keys() -> None:
    assert SECRET not in repr(ServerSettings(api_key=SECRET, admin_api_key=SECRET))


@pytest.mark.parametrize("command", [["info"], ["doctor", "--json"]])
def test_what_tells_of_the_environment_does_not_tell_a_key(
    warm: Warm, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.setattr(sys, "executable", warm.interpreter)  # of which the doctor starts many
    for name in KEY_OPTIONS.values():
        monkeypatch.setenv(name, SECRET)
    main(command)
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err
    assert all(name in said.out for name in KEY_OPTIONS.values())
