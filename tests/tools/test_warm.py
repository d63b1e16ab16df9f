"""A program that is forked is seen as one that was started: output, arguments, folder, end, and signals."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.programs import Program
from tools.warm import Warm


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    with Warm(tmp_path_factory.mktemp("warm"), ["fractions", "no.such.module"]) as one:
        yield one


def run(warm: Warm, code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*warm.python, "-c", code, *arguments], capture_output=True, text=True, **options)


def test_it_has_arguments_variables_and_a_folder_of_its_own(warm, tmp_path):
    (tmp_path / "beside.py").write_text("HERE = 1\n")
    code = "import os, sys, beside; print(sys.argv[1:], os.environ['MINE'], os.getcwd(), input())"
    done = run(warm, code, "a", "b", env={**os.environ, "MINE": "x"}, cwd=tmp_path, input="y\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"['a', 'b'] x {tmp_path} y\n", "")


def test_modules_and_files_are_run_as_such(warm, tmp_path):
    (tmp_path / "program.py").write_text("import sys\nprint(__name__, sys.argv)\n")
    module = [*warm.python, "-m", "program", "a"]
    done = subprocess.run(module, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("__main__ [")
    file = [*warm.python, str(tmp_path / "program.py"), "a"]
    done = subprocess.run(file, capture_output=True, text=True, check=True)
    assert done.stdout == f"__main__ ['{tmp_path / 'program.py'}', 'a']\n"


def test_one_file_stands_for_it(warm, tmp_path):
    command = [warm.interpreter, "-c", "import sys; print('fractions' in sys.modules, sys.argv[1:])", "a b"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "True ['a b']\n"


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("import fractions", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no\n"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
        ("import os; os.abort()", -signal.SIGABRT, ""),
        ("import atexit, sys; atexit.register(lambda: print('last', file=sys.stderr))", 0, "last\n"),
        (
            "import sys, threading; threading.Thread(target=lambda: print('t', file=sys.stderr)).start()",
            0,
            "t",
        ),
    ],
)
def test_it_ends_as_the_program_does(warm, code, status, said):
    done = run(warm, code)
    assert done.returncode == status
    assert said in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_reach_it(warm, number):
    code = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(9))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(60)"
    )
    with Program([*warm.python, "-c", code], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        program.send_signal(number)
        assert program.wait(60) == 9


def test_it_is_killed_with_who_started_it(warm):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with Program([*warm.python, "-c", code], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        process = int(program.stdout.readline())
        program.kill()
        assert program.stdout.read() == ""  # open until the program itself has gone
    assert not Path(f"/proc/{process}/fd").exists() or not os.listdir(f"/proc/{process}/fd")


def test_an_interpreter_that_ends_at_once_is_told(tmp_path):
    (tmp_path / "torn.py").write_text("import os; os._exit(1)")
    with Warm(tmp_path, ["torn"]) as one, pytest.raises(RuntimeError, match="cannot import torn"):
        one.start({**os.environ, "PYTHONPATH": str(tmp_path)})
