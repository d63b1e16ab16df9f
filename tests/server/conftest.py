"""Real servers on real sockets of this machine, over small real models."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch

from devicekit.engine import Engine, EngineConfig
from devicekit.server.app import create_app
from devicekit.server.run import bind, server
from devicekit.server.serving import Serving
from devicekit.server.settings import ServerSettings
from examples.checkpoints import write_example_checkpoint

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Models:
    """Two checkpoints of one architecture in one directory, which only some tests write to."""

    root: Path
    a: Path
    b: Path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("ab", 1):
        path = write_example_checkpoint(root / name, seed=seed)
        (path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": POSITIONS}))
    return Models(root, root / "a", root / "b")


@dataclass
class Server:
    """A server that is running."""

    url: str
    serving: Serving
    http: httpx.Client

    def get(self, path: str, **query: object) -> httpx.Response:
        return self.http.get(path, params={key: str(value) for key, value in query.items()})

    def post(self, path: str, document: object = None, **options: object) -> httpx.Response:
        return self.http.post(path, json={} if document is None else document, **options)

    def generate(self, prompt: str | list[int] = "Pages of keys", **params: object) -> dict[str, object]:
        key = "text" if isinstance(prompt, str) else "input_ids"
        params = {"max_new_tokens": 8, "temperature": 0, **params}
        answer = self.post("/generate", {key: prompt, "sampling_params": params})
        assert answer.status_code == 200, answer.text
        return answer.json()

    @contextlib.contextmanager
    def streaming(self, document: dict[str, object]) -> Iterator[Iterator[dict[str, object]]]:
        """A streamed /generate: its events, as they come, without the final one."""
        with self.http.stream("POST", "/generate", json={**document, "stream": True}) as answer:
            assert answer.status_code == 200, answer.read()
            yield events(answer)

    @contextlib.contextmanager
    def running(self, **more: object) -> Iterator[Iterator[dict[str, object]]]:
        """A request that has begun, and that ends only when somebody ends it.

        Nothing waits for its last token: at a step per token that would take a thousand times what a test takes.
        """
        document = {"text": "The sea", "sampling_params": LONG, **more}
        with self.streaming(document) as stream:
            next(stream)
            yield stream

    def load(self) -> dict[str, object]:
        [load] = self.get("/v1/loads", include="core").json()["loads"]
        return load

    def restore(self, models: Models) -> None:
        """Have the server generate again, whatever was done to it."""
        self.post("/end_weight_update")
        if self.post("/resume_memory_occupation").json()["untrusted"]:
            self.post("/update_weights_from_disk", {"model_path": str(models.a)})
        answer = self.post("/continue_generation")
        if answer.status_code != 200:  # held for a fleet
            claim = self.post("/claim_for_fleet", {"fleet": "tests", "take_over": True}).json()
            lease = {"lease": claim["lease"]}
            self.post("/join_fleet", {"weight_version": claim["weight_version"], **lease})
            self.post("/end_fleet_claim", lease)
            answer = self.post("/continue_generation")
        assert answer.status_code == 200, answer.text

    def eventually(self, holds: Callable[[], bool]) -> None:
        """Wait for something that is going to be true soon; each look is a request to the server."""
        for _ in range(2000):
            if holds():
                return
            self.get("/ping")
        raise AssertionError("it never came true")


# Of the models served here. A request may have so many tokens that no test sees it come to its end by itself.
POSITIONS = 1 << 16
LONG = {"max_new_tokens": POSITIONS - 1000, "temperature": 0, "ignore_eos": True}
# Room for a few such requests, each of which admission sets pages aside for. Unused memory costs nothing.
KV_TOKENS = 12 * POSITIONS


def events(answer: httpx.Response) -> Iterator[dict[str, object]]:
    """The events of a response, which must end as announced."""
    for line in answer.iter_lines():
        if not line:
            continue
        assert line.startswith("data: ")
        if line == "data: [DONE]":
            return
        yield json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream ended without saying so")


Serve = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="session")
def serve(models: Models) -> Serve:
    """``with serve(max_running=…, api_key=…) as server``: names of EngineConfig and ServerSettings."""

    @contextlib.contextmanager
    def start(model: Path | None = None, **settings: object) -> Iterator[Server]:
        sizes = {field.name for field in dataclasses.fields(EngineConfig)}
        chosen = {"kv_tokens": KV_TOKENS, **settings}
        config = EngineConfig(**{name: value for name, value in chosen.items() if name in sizes})
        rest = {name: value for name, value in settings.items() if name not in sizes}
        rest = {"allowed_weights_roots": (models.root,), "drain_seconds": 0, **rest}
        chosen = ServerSettings(port=0, **rest)
        app = create_app(Engine.open(model or models.a, "cpu", config=config), chosen)
        listener = bind(chosen)
        listener.listen()
        running = server(app)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
                yield Server(url, app.state.serving, http)
        finally:
            running.should_exit = True
            thread.join()

    return start


@pytest.fixture(scope="module")
def shared(serve: Serve) -> Iterator[Server]:
    """A server that the tests of a module share, and leave as they found it."""
    with serve() as running:
        yield running
