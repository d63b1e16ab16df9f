"""What the server costs itself, a request and a streamed token, in CPU, beside a bare ASGI application.

The model says tokens in no time, so what is left is HTTP, checking, the scheduler and decoding of text. The bare
application reads the same body as JSON and answers as many bytes in as many pieces, under the same server program.
Each is a process of its own; a client on one connection asks for one answer after another.
"""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from threading import Thread
from time import process_time
from typing import Any

import httpx
import numpy as np
import uvicorn

from bench.harness import Row, Timing, rows_beside, timed_row
from devicekit.device import get_device
from devicekit.engine import Engine, EngineConfig
from devicekit.runners import attention
from devicekit.runners.checkpoint import ModelDirectory
from devicekit.runners.loading import load_model
from devicekit.runners.transformers_runner import TransformersRunner
from devicekit.scheduling.batch import ForwardBatch, StepOutput
from devicekit.server import ServerSettings, create_app
from devicekit.server import run as server_run
from examples.checkpoints import write_example_checkpoint

_REQUESTS = 100  # of a turn
_TOKENS = 64  # of a stream
_TURNS = 7
_SAYS = (
    "a request: POST /generate with 32 token ids, one token out. a streamed token: POST /generate with stream, "
    f"{_TOKENS} tokens, a client that reads them one by one.\n"
    "CPU of the server's process, the engine's thread included, whose model says tokens in no time.\n"
    "bare ASGI app: reads the same body as JSON, answers as many bytes in as many pieces, under uvicorn too."
)
_Message = MutableMapping[str, Any]


def run() -> list[Row]:
    """A request with one token, and a token of a stream."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_example_checkpoint(Path(folder) / "example", seed=1)
        with _served(_ours, str(path)) as ours, _served(_bare, _pieces(ours)) as bare:
            sides = {"ours": ours, "bare ASGI app": bare}
            rows = _beside("a request with one token", sides, _one_token, _REQUESTS)
            return [*rows, *_beside("a streamed token", sides, _stream, _TOKENS * _REQUESTS // 10)]


def _beside(case: str, sides: dict[str, _Side], turn: Callable[[_Side], None], units: int) -> list[Row]:
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(_TURNS + 1):
        for name, side in sides.items():
            before = side.cpu()
            turn(side)
            if number:  # the first is for warming up
                found[name].append((side.cpu() - before) / units)
    own, bare = found["ours"], found["bare ASGI app"]
    beyond = median(own) - median(bare)
    return [
        *rows_beside(case, own, {"bare ASGI app": bare}, {}, _SAYS),
        timed_row(f"{case}: beyond the bare app", Timing.of(beyond * 1e6), says=_SAYS),
    ]


def _one_token(side: _Side) -> None:
    for _ in range(_REQUESTS):
        side.client.post("/generate", json=_body(1)).raise_for_status()


def _stream(side: _Side) -> None:
    for _ in range(_REQUESTS // 10):
        with side.client.stream("POST", "/generate", json=_body(_TOKENS, stream=True)) as answer:
            for _ in answer.iter_raw():
                pass


def _body(tokens: int, **more: object) -> dict[str, object]:
    params = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return {"input_ids": list(range(3, 35)), "sampling_params": params, **more}


def _pieces(ours: _Side) -> list[bytes]:
    """What the server answers, in its pieces: of one token first, then of a stream."""
    whole = ours.client.post("/generate", json=_body(1)).raise_for_status().content
    with ours.client.stream("POST", "/generate", json=_body(_TOKENS, stream=True)) as answer:
        events = b"".join(answer.iter_raw()).split(b"\n\n")
    return [whole, *(event + b"\n\n" for event in events if event)]


class _Side:
    """A server in a process of its own, and a client of it."""

    def __init__(self, port: int, asked: Connection) -> None:
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        self._asked = asked

    def cpu(self) -> float:
        """CPU seconds of its process so far."""
        self._asked.send(None)
        seconds: float = self._asked.recv()
        return seconds


@contextmanager
def _served(make: Callable[[Any], uvicorn.Server], argument: object) -> Iterator[_Side]:
    listening = server_run.bind(ServerSettings(port=0))
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(
        target=_serve, args=(make, argument, listening, there), daemon=True
    )
    process.start()
    try:
        there.close()
        here.recv()
        yield _Side(listening.getsockname()[1], here)
    finally:
        process.terminate()
        process.join()
        listening.close()


def _serve(
    make: Callable[[Any], uvicorn.Server], argument: object, listening: socket.socket, asked: Connection
) -> None:
    server = make(argument)

    def tell() -> None:
        asked.send(None)
        while True:
            asked.recv()
            asked.send(process_time())

    Thread(target=tell, daemon=True).start()
    with redirect_stdout(StringIO()):
        server.run([listening])


def _ours(path: str) -> uvicorn.Server:
    device = get_device("cpu")
    attention.register()
    directory = ModelDirectory.open(path)
    runner = _Talker(directory, load_model(directory, dtype=None).to(device.torch_device), device)
    return server_run.server(create_app(Engine(runner, device, EngineConfig(kv_tokens=8192))))


class _Talker(TransformersRunner):
    """Says the same token everywhere, in no time."""

    def step(self, batch: ForwardBatch) -> StepOutput:
        return StepOutput(np.full(len(batch.logits_indices), 5, np.int32))


def _bare(pieces: list[bytes]) -> uvicorn.Server:
    whole, stream = pieces[0], pieces[1:]

    async def answer(
        scope: _Message,
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
    ) -> None:
        if scope["type"] == "lifespan":
            for phase in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{phase}.complete"})
            return
        given: list[bytes] = []
        while True:
            message = await receive()
            given.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        streaming = json.loads(b"".join(given)).get("stream")
        kind = b"text/event-stream" if streaming else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        for piece in stream if streaming else [whole]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return uvicorn.Server(uvicorn.Config(answer, log_level="error"))
