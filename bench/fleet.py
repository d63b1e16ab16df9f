"""``python -m bench.fleet``: what a fleet costs a verb, and what updates cost those who ask meanwhile.

Real engines in processes of their own, on this machine. Routes that need what is not installed (sglang-router) are
left out and named.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import httpx

from examples.checkpoints import write_example_checkpoint
from examples.fleet import Engine

_BODY = {"text": "The sea", "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
_LONGER = {"text": "The sea", "sampling_params": {"max_new_tokens": 16, "temperature": 0}}


def main() -> int:
    """Print one table for each question."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument("--engines", type=int, default=2, help="default: %(default)s")
    parser.add_argument(
        "--pairs", type=int, default=100, help="paired calls of each kind; default: %(default)s"
    )
    parser.add_argument(
        "--clients", type=int, default=4, help="that ask during updates; default: %(default)s"
    )
    parser.add_argument("--updates", type=int, default=3, help="of each kind; default: %(default)s")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # several engines share the processors
    print(
        f"{options.engines} engines, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} at the start\n"
    )
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder)
        paths = [write_example_checkpoint(root / f"v{seed}", seed=seed) for seed in (1, 2)]
        engines = [Engine(paths[0], root) for _ in range(options.engines)]
        for one in engines:
            stack.callback(one.kill)
        front = stack.enter_context(_front(root / "fleet.json", [one.url for one in engines]))
        http = stack.enter_context(httpx.Client(timeout=600, trust_env=False))
        while http.get(f"{front}/ready").status_code != 200:
            time.sleep(0.1)
        _verbs(http, engines[0].url, front, options.pairs)
        _routes(http, engines, options.pairs, stack)
        _updates(http, engines, front, paths, options)
    return 0


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@contextmanager
def _process(command: list[str], url: str, page: str) -> Iterator[str]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                if httpx.get(url + page, trust_env=False).status_code < 500:
                    break
            except httpx.HTTPError:
                if process.poll() is not None:
                    raise RuntimeError(f"{command} ended with {process.returncode}") from None
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def _front(file: Path, urls: list[str]) -> AbstractContextManager[str]:
    port = _free()
    named = [f"--engine={url}" for url in urls]
    command = [sys.executable, "-m", "devicekit", "fleet", "--file", str(file), *named]
    serving = ["serve", "--port", str(port), "--adopt", "--tend-every", "1"]
    return _process([*command, *serving], f"http://127.0.0.1:{port}", "/health")


def _paired(
    first: Callable[[], object], second: Callable[[], object], pairs: int
) -> tuple[list[float], list[float]]:
    """Seconds of each, in turn, the one before the other every second time."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(pairs + 5):
        for which in (0, 1) if number % 2 else (1, 0):
            begun = time.perf_counter()
            (first, second)[which]()
            if number >= 5:
                found[which].append(time.perf_counter() - begun)
    return found


def _tell(name: str, times: tuple[list[float], list[float]]) -> None:
    plain, other = times
    extra = statistics.median(b - a for a, b in zip(plain, other, strict=True))
    low, high = statistics.median(plain) * 1e3, statistics.median(other) * 1e3
    print(f"{name:46} {low:8.2f} ms  {high:8.2f} ms  {extra * 1e3:+8.2f} ms")


def _posting(http: httpx.Client, url: str, body: object) -> Callable[[], object]:
    return lambda: http.post(url, json=body).raise_for_status()


def _verbs(http: httpx.Client, engine: str, front: str, pairs: int) -> None:
    print("A verb: to one engine, to the fleet of all, and the median of their differences")
    for path in ("/continue_generation", "/flush_cache?timeout=5"):
        _tell(path, _paired(_posting(http, engine + path, {}), _posting(http, front + path, {}), pairs))
    print()


def _routes(http: httpx.Client, engines: list[Engine], pairs: int, stack: ExitStack) -> None:
    print("A request of one token: to an engine, by the route, and the median of their differences")
    print(f"{'a fleet':46} carries no request of a client")
    if importlib.util.find_spec("sglang_router") is None:
        print(f"{'sglang-router':46} not installed")
    else:
        port = _free()
        command = [
            sys.executable,
            "-m",
            "sglang_router.launch_router",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        more = ["--policy", "cache_aware", "--prometheus-port", str(_free())]
        urls = ["--worker-urls", *(one.url for one in engines)]
        route = stack.enter_context(
            _process([*command, *more, *urls], f"http://127.0.0.1:{port}", "/readiness")
        )
        while http.post(f"{route}/generate", json=_BODY).status_code != 200:
            time.sleep(0.2)
        plain = _posting(http, f"{engines[0].url}/generate", _BODY)
        _tell("sglang-router", _paired(plain, _posting(http, f"{route}/generate", _BODY), pairs))
    print()


class _Load:
    """Clients that ask one engine after the other, until stopped."""

    def __init__(self, urls: list[str], count: int) -> None:
        self._urls = urls
        self._stop = threading.Event()
        self.seconds: list[float] = []
        self.failed = 0
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(count)]

    def _ask(self, number: int) -> None:
        with httpx.Client(timeout=600, trust_env=False) as http:
            while not self._stop.is_set():
                number += 1
                begun = time.perf_counter()
                try:
                    answer = http.post(f"{self._urls[number % len(self._urls)]}/generate", json=_LONGER)
                    self.failed += answer.status_code != 200
                except httpx.HTTPError:
                    self.failed += 1
                self.seconds.append(time.perf_counter() - begun)

    def __enter__(self) -> _Load:
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for one in self._threads:
            one.join()


def _updates(
    http: httpx.Client, engines: list[Engine], front: str, paths: list[Path], options: argparse.Namespace
) -> None:
    print(
        f"An update under {options.clients} clients: its seconds, and what they saw from its begin to its end"
    )
    print(f"{'':14} {'seconds':>8} {'requests':>9} {'failed':>7} {'median':>9} {'slowest':>9}")
    number = 0
    for kind, rolling in (("none", None), ("all at once", False), ("rolling", True)):
        for _ in range(options.updates):
            number += 1
            body = {
                "model_path": str(paths[number % 2]),
                "weight_version": f"bench{number}",
                "rolling": rolling,
            }
            with _Load([one.url for one in engines], options.clients) as load:
                time.sleep(1)
                load.seconds.clear()
                begun = time.perf_counter()
                if rolling is None:
                    time.sleep(2)
                else:
                    answer = http.post(f"{front}/update_weights_from_disk", json=body)
                    assert answer.status_code == 200, answer.text
                took = time.perf_counter() - begun
            print(
                f"{kind:14} {took:8.2f} {len(load.seconds):9} {load.failed:7} "
                f"{statistics.median(load.seconds) * 1e3:6.0f} ms {max(load.seconds) * 1e3:6.0f} ms"
            )


if __name__ == "__main__":
    sys.exit(main())
