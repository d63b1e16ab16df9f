"""A cluster of this machine alone with an application that asks for keys and scales by itself, until stdin ends.

``python -m tests.ray_serve.keyed FOLDER PORT``: the folder has models ``v1`` and ``v2`` and the keys' files.
"""

from __future__ import annotations

import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SCALING: dict[str, object] = {
    "min_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 1,
    "upscale_delay_s": 1,
    "downscale_delay_s": 5,
    "metrics_interval_s": 1,
    "look_back_period_s": 2,
}


def main(folder: str, port: str) -> None:
    import ray
    from ray import serve

    from devicekit.ray_serve import Arguments, build

    root = Path(folder)
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(CHECKOUT)}},
        _node_ip_address="127.0.0.1",
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
        arguments = Arguments(
            model=str(root / "v1"),
            autoscaling=SCALING,
            device="cpu",
            weights_root=root,
            fleet_file=root / "fleet.json",
            api_key_file=root / "key",
            admin_api_key_file=root / "admin-key",
            engine={"kv_tokens": 4096, "max_running": 2},
        )
        serve.run(build(arguments), name="keyed")
        print("serving", flush=True)
        sys.stdin.read()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
