"""OpenAI's client and plain HTTP through a gateway in front of the server: sglang-router or smg, as installed."""

import importlib.util
import json
import os
import runpy
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

SECONDS = 120  # that a gateway gets to find its worker
SHORT = {"max_new_tokens": 8, "temperature": 0}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def post(path, document, at):
    content = json.dumps(document).encode()
    request = urllib.request.Request(at + path, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def native():
    document = {"text": "Pages", "sampling_params": SHORT, "return_logprob": True, "top_logprobs_num": 2}
    told, direct = (json.loads(post("/generate", document, one)) for one in (gateway, server))
    assert told["output_ids"] == direct["output_ids"]
    found, expected = (one["meta_info"]["output_top_logprobs"] for one in (told, direct))
    assert [len(one) for one in found] == [2] * 8 == [len(one) for one in expected]
    lines = post("/generate", {**document, "stream": True}, gateway).splitlines()
    events = [one.removeprefix("data: ") for one in lines if one]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["text"] == direct["text"]


def flush():
    post("/generate", {"text": "Pages of keys and values", "sampling_params": SHORT}, gateway)
    post("/flush_cache", {}, gateway)
    after = json.loads(
        post("/generate", {"text": "Pages of keys and values", "sampling_params": SHORT}, gateway)
    )
    assert after["meta_info"]["cached_tokens"] == 0


server = os.environ["BASE_URL"]
package = "smg" if importlib.util.find_spec("smg") else "sglang_router"
port, metrics = free_port(), free_port()
gateway = f"http://127.0.0.1:{port}"
command = [sys.executable, "-m", f"{package}.launch_router", "--host", "127.0.0.1", "--port", str(port)]
command += ["--prometheus-port", str(metrics), "--worker-urls", server]
process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{gateway}/readiness", timeout=5).close()
            break
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, "the gateway has ended"
            assert time.monotonic() < deadline, "the gateway found no worker"
            time.sleep(0.5)
    for check in (native, flush):
        try:
            check()
            wrong = ""
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"[:200]
        print(json.dumps({"check": check.__name__.replace("_", " "), "wrong": wrong}), flush=True)
    os.environ["BASE_URL"] = os.environ["GATEWAY"] = gateway
    runpy.run_path(str(Path(__file__).with_name("openai_python.py")))
finally:
    process.terminate()
    process.wait(60)
