"""Two engines on one machine, steered as one: updated at once, one of them killed, updated one by one.

Run ``python -m examples.fleet`` (``make fleet``) in a checkout.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from examples.checkpoints import write_example_checkpoint


class Engine:
    """``devicekit serve`` in a process of its own, waiting for its fleet."""

    def __init__(self, model: Path, roots: Path, port: int = 0) -> None:
        command = ["serve", "--model", str(model), "--device", "cpu", "--kv-tokens", "2048", "--await-fleet"]
        more = ["--port", str(port), "--allowed-weights-root", str(roots)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "devicekit", *command, *more], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = next(line for line in self.process.stdout if line.startswith("Serving on "))
        self.url = line.removeprefix("Serving on ").strip()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def says(self, text: str) -> str:
        body = {"text": text, "sampling_params": {"max_new_tokens": 8, "temperature": 0}}
        request = urllib.request.Request(
            f"{self.url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(json.load(answer)["text"])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def fleet(*arguments: str) -> int:
    """Run ``devicekit fleet`` and show it."""
    print(f"\n$ devicekit fleet {' '.join(arguments)}", flush=True)
    return subprocess.run([sys.executable, "-m", "devicekit", "fleet", *arguments], check=False).returncode


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder)
        old, new = (write_example_checkpoint(root / f"v{seed}", seed=seed) for seed in (1, 2))
        engines = [Engine(old, root) for _ in range(2)]
        for one in engines:
            stack.callback(one.kill)
        named = ["--file", str(root / "fleet.json"), *(f"--engine={one.url}" for one in engines)]
        update = ["update", "--model-path", str(new), "--weight-version", "v2"]
        done = [fleet(*named, *update) == 0]
        done.append(len({one.says("The sea") for one in engines}) == 1)
        print("\nOne engine is killed and starts again: it has the old weights, and waits for the fleet's.")
        engines[0].kill()
        engines[0] = Engine(old, root, engines[0].port)
        stack.callback(engines[0].kill)
        done.append(fleet(*named, "tend") == 0)
        back = ["update", "--rolling", "--model-path", str(old), "--weight-version", "v3"]
        done.append(fleet(*named, *back) == 0)
        done.append(len({one.says("The sea") for one in engines}) == 1)
        print(
            f"\n{'Both engines have said the same after each step.' if all(done) else 'Something went wrong.'}"
        )
        return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
