"""Two engines as replicas of Ray Serve, steered as one: updated, one of them killed, updated again.

Run ``python -m examples.fleet_ray`` (``make fleet-ray``) in a checkout, with Ray installed (``devicekit[ray]``).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from examples.checkpoints import write_example_checkpoint

CHECKOUT = Path(__file__).resolve().parents[1]
_PATIENCE = 600.0  # seconds for Ray to start a replica, on a busy machine


class Application:
    """What answers behind Ray's proxy."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def call(self, path: str, body: object = None) -> tuple[int, dict[str, object]]:
        """POST where there is a body, else GET: status and document."""
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, content, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")

    def says(self, times: int = 12) -> set[str]:
        """What the replicas say to the same prompt; one text where all have the same weights."""
        body = {"text": "The sea", "sampling_params": {"max_new_tokens": 8, "temperature": 0}}
        return {str(self.call("/generate", body)[1]["text"]) for _ in range(times)}

    def replicas(self) -> list[str]:
        """Their own addresses."""
        urls = self.call("/list_workers")[1].get("urls")
        return [str(one) for one in urls] if isinstance(urls, list) else []

    def until_others_are_ready(self, before: list[str]) -> list[str]:
        """Wait until two replicas serve the fleet's weights, which are not the two of before."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            found = self.replicas()
            if found != before and len(found) == 2 and self.call("/ready")[0] == 200:
                return found
            time.sleep(1)
        raise TimeoutError(f"there are not two replicas after {_PATIENCE:g} s: {self.call('/ready')}")


def start(root: Path, port: int) -> None:
    """A cluster of this machine alone, and the application in it."""
    import ray
    from ray import serve

    from devicekit.ray_serve import Arguments, build

    paths = {"PYTHONPATH": str(CHECKOUT)}
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": paths},
        _node_ip_address="127.0.0.1",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    arguments = Arguments(
        model=str(root / "v1"),
        replicas=2,
        device="cpu",
        weights_root=root,
        fleet_file=root / "fleet.json",
        engine={"kv_tokens": 2048},
    )
    serve.run(build(arguments), name="models")


def replica_process() -> int:
    """The process of one of the replicas, by the name that Ray gives it."""
    listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    lines = (line.split(maxsplit=1) for line in listed.splitlines())
    return next(int(pid) for pid, name in lines if name.startswith("ray::ServeReplica:models:Engine"))


def main() -> int:
    try:
        import ray
        from ray import serve
    except ModuleNotFoundError:
        print("Ray is not installed: pip install 'devicekit[ray]'", file=sys.stderr)
        return 1
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for seed in (1, 2):
            write_example_checkpoint(root / f"v{seed}", seed=seed)
        start(root, port)
        try:
            return 0 if cycle(root, Application(port)) else 1
        finally:
            serve.shutdown()
            ray.shutdown()


def cycle(root: Path, application: Application) -> bool:
    """The demonstration; whether all replicas said the same after each step."""
    said = [application.says()]
    update = {"model_path": str(root / "v2"), "weight_version": "v2"}
    for step in (update, {"model_path": str(root / "v1"), "weight_version": "v3", "rolling": True}):
        status, answer = application.call("/update_weights_from_disk", step)
        print(f"{status} {answer['message']}", flush=True)
        said.append(application.says())
    before = application.replicas()
    print("A replica is killed. Ray starts another, and the fleet brings it the weights.", flush=True)
    os.kill(replica_process(), signal.SIGKILL)
    print(f"Ready: {', '.join(application.until_others_are_ready(before))}", flush=True)
    said.append(application.says())
    done = all(len(one) == 1 for one in said) and said[0] == said[2] == said[3] != said[1]
    print("All replicas have said the same after each step." if done else f"Something went wrong: {said}")
    return done


if __name__ == "__main__":
    sys.exit(main())
