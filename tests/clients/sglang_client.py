"""SGLang's own clients: its load generator to completion, its language, the calls of its page on the native API.

They are read from its wheel without the engine beside them: what only the engine needs (torchvision, kernels) is
not installed. So its package is not initialised, and the one constant that the load generator takes from the
engine is given here.
"""

import importlib.util
import json
import os
import sys
import tempfile
import types
from pathlib import Path

import requests


def without_engine():
    found = importlib.util.find_spec("sglang")
    assert found is not None
    assert found.submodule_search_locations is not None
    package = sys.modules["sglang"] = types.ModuleType("sglang")
    package.__path__ = list(found.submodule_search_locations)
    names = {"FAKE_BOOTSTRAP_HOST": "2.2.2.2"}
    for name in ("sglang.srt.disaggregation", "sglang.srt.disaggregation.utils"):
        sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(names)


os.environ["HF_HUB_OFFLINE"] = "1"  # nothing of these checks is on a hub
without_engine()
from sglang.benchmark.serving import cli_main  # noqa: E402
from sglang.lang import api  # noqa: E402
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint  # noqa: E402

server, model = os.environ["BASE_URL"], os.environ["MODEL"]


def load(backend, *more):
    """A run of the load generator: every request has to complete with the tokens that it asked for."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.jsonl")
        sys.argv = ["bench_serving", "--backend", backend, "--base-url", server, "--model", model]
        sys.argv += ["--served-model-name", "small", "--dataset-name", "random-ids", "--num-prompts", "24"]
        sys.argv += ["--random-input-len", "48", "--random-output-len", "16", "--random-range-ratio", "1.0"]
        sys.argv += ["--output-file", str(result), "--output-details", "--seed", "7", *more]
        cli_main()
        found = json.loads(result.read_text().splitlines()[-1])
    assert found["completed"] == 24, found["completed"]
    assert not any(found["errors"]), [one for one in found["errors"] if one][:1]
    assert found["total_output_tokens"] == 24 * 16, found["total_output_tokens"]


def load_generator():
    load("sglang", "--max-concurrency", "8")
    load("sglang-oai", "--request-rate", "40")
    load("sglang-oai-chat", "--flush-cache")
    load("sglang", "--disable-stream", "--return-logprob")


def language():
    endpoint = RuntimeEndpoint(server)
    api.set_default_backend(endpoint)

    @api.function
    def program(s, subject):
        s += "Pages of " + subject
        s += api.gen("free", max_tokens=8, temperature=0, ignore_eos=True)
        s += " is " + api.select("chosen", choices=["kept", "given back"], temperature=0)
        s += " at " + api.gen("number", regex="[0-9]{2}", max_tokens=8)

    state = program.run(subject="keys")
    assert state["chosen"] in ("kept", "given back")
    assert len(state["number"]) == 2
    assert state["number"].isdigit()
    several = program.run_batch([{"subject": one} for one in ("keys", "values", "weights")])
    assert several[0]["free"] == state["free"]
    streamed = program.run(subject="keys", stream=True)
    assert "".join(streamed.text_iter("free")) == state["free"]
    endpoint.flush_cache()
    assert endpoint.get_server_info()


def native_page():
    """The calls of its page on the native API, and what is no part of this engine refused by name."""

    def ask(method, path, document=None):
        return requests.request(method, server + path, json=document, timeout=60)

    for path in ("/model_info", "/get_model_info", "/server_info", "/health", "/health_generate"):
        assert ask("GET", path).status_code == 200, path
    text = {"text": "What is a page of keys?", "sampling_params": {"temperature": 0, "max_new_tokens": 8}}
    first = ask("POST", "/generate", text).json()
    assert ask("POST", "/flush_cache").status_code == 200
    update = {"model_path": model}
    assert ask("POST", "/update_weights_from_disk", update).json()["success"] is True
    wrong = ask("POST", "/update_weights_from_disk", {"model_path": model + "-wrong"})
    assert wrong.json()["success"] is False
    assert ask("POST", "/generate", text).json()["text"] == first["text"]
    tokens = ask("POST", "/tokenize", {"model": "small", "prompt": text["text"]}).json()["tokens"]
    back = ask("POST", "/detokenize", {"model": "small", "tokens": tokens}).json()
    assert back["text"] == text["text"], back
    ids = {"input_ids": tokens, "sampling_params": text["sampling_params"]}
    assert ask("POST", "/generate", ids).json()["output_ids"] == first["output_ids"]
    for path in ("/encode", "/classify", "/v1/rerank", "/start_expert_distribution_record", "/v1/embeddings"):
        answer = ask("POST", path, {})
        assert answer.status_code == 404, (path, answer.status_code)
        assert path in answer.json()["error"]["message"], answer.text


for check in (load_generator, language, native_page):
    try:
        check()
        problem = ""
    except (Exception, SystemExit) as error:
        problem = f"{type(error).__name__}: {error}"[:200]
    print(json.dumps({"check": check.__name__.replace("_", " "), "wrong": problem}), flush=True)
