"""Real client programs against a real server: ``make clients``. Writes the matrix of clients and checks.

Each client is a program of its own in this folder, run in an environment of its own. It prints one JSON object a
check: its name, whether it held, and what was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examples.checkpoints import write_example_checkpoint

HERE = Path(__file__).parent
TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
)
_SGLANG = (
    "torch transformers triton aiohttp datasets ipython msgspec numpy orjson pillow psutil pybase64 pydantic"
    " pyzmq requests starlette -c constraints.txt; --no-deps sglang"
)
# Program, and what it needs: packages of an index, after a semicolon those installed by themselves, or one of npm.
CLIENTS = {
    "openai (Python)": ("openai_python.py", "openai"),
    "openai (Node)": ("openai_node.mjs", "openai"),
    "litellm": ("litellm_client.py", "litellm"),
    "langchain-openai": ("langchain_client.py", "langchain-openai"),
    "lm-eval": ("lm_eval_client.py", "lm-eval[api] transformers"),
    "SGLang's own": ("sglang_client.py", _SGLANG),
    "openai behind sglang-router": ("gateway_client.py", "sglang-router openai"),
    "openai behind smg": ("gateway_client.py", "smg openai"),
}


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server over a small model; its address."""
    model = write_example_checkpoint(folder / "model", seed=1)
    template = folder / "template.jinja"
    template.write_text(TEMPLATE)
    command = [
        sys.executable,
        "-m",
        "devicekit",
        "serve",
        "--model",
        str(model),
        "--device",
        "cpu",
        "--port",
        "0",
    ]
    command += ["--chat-template", str(template), "--served-model-name", "small", "--kv-tokens", "8192"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"http://\S+", line):
                yield found[0]
                return
        raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait(30)


def environment(folder: Path, program: str, package: str) -> list[str]:
    """The command that runs a program, with what it needs installed once."""
    if program.endswith(".mjs"):
        if not (folder / "node_modules" / package).is_dir():
            subprocess.run(["npm", "install", "--silent", "--prefix", str(folder), package], check=True)
        return ["node"]
    name = f"{program.partition('.')[0]}-{package.partition('[')[0].partition(' ')[0]}"
    python = folder / f"venv-{name}" / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
        for one in package.split(";"):
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *one.split()], check=True)
    return [str(python)]


def ask(folder: Path, program: str, package: str, url: str, model: Path) -> dict[str, str]:
    """The outcome of each check: empty if it held, and otherwise why not."""
    command = environment(folder, program, package)
    script = HERE / program
    if program.endswith(".mjs"):  # modules are looked for beside the program
        script = folder / program
        script.write_text((HERE / program).read_text())
    done = subprocess.run(
        [*command, str(script)],
        env={**os.environ, "BASE_URL": url, "MODEL": str(model)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    found = {one["check"]: one["wrong"] for one in told}
    if done.returncode:
        found["runs to its end"] = done.stderr.strip().splitlines()[-1][:200] if done.stderr else "it did not"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.clients")
    parser.add_argument("--folder", type=Path, default=Path(".clients"), help="where environments are kept")
    parser.add_argument("--markdown", type=Path, help="write the matrix here")
    parser.add_argument("--only", action="append", choices=sorted(CLIENTS), help="default: all")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    matrix: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as temporary, serving(Path(temporary)) as url:
        for name in options.only or CLIENTS:
            matrix[name] = ask(options.folder.resolve(), *CLIENTS[name], url, Path(temporary) / "model")
            for check, wrong in matrix[name].items():
                print(f"{name}: {check}: {wrong or 'ok'}")
    if options.markdown:
        options.markdown.write_text(table(matrix))
    return int(any(wrong for checks in matrix.values() for wrong in checks.values()))


def table(matrix: dict[str, dict[str, str]]) -> str:
    """Clients down, checks across."""
    checks = list(dict.fromkeys(check for found in matrix.values() for check in found))
    lines = ["# Client programs", "", "Real clients against a real server; written by `make clients`.", ""]
    lines += [f"| client | {' | '.join(checks)} |", f"|---{'|---' * len(checks)}|"]
    for name, found in matrix.items():
        cells = ["-" if check not in found else found[check] or "yes" for check in checks]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
