"""The application: replicas behind Ray's proxies, and the one deployment that steers them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from devicekit.ray_serve.arguments import Arguments


def build(arguments: Arguments | Mapping[str, object]) -> Any:
    """A Ray Serve application: ``serve.run(build(Arguments(model=…)))``. Ray gives arguments as a mapping.

    There is one steward at a time: while it is started anew, verbs wait for it, and requests are served.
    """
    from ray import serve

    from devicekit.ray_serve.replica import Replica, front_of_this_process
    from devicekit.ray_serve.steward import Steward

    arguments = Arguments.model_validate(arguments)
    given = arguments.model_dump(mode="json")
    steward = serve.deployment(Steward, name="Fleet").options(
        num_replicas=1,
        max_ongoing_requests=1024,
        ray_actor_options={"num_cpus": 0},
        logging_config={"enable_access_log": False},  # every replica says again and again that it is there
    )
    options: dict[str, Any] = {
        "max_ongoing_requests": arguments.max_ongoing_requests,
        "ray_actor_options": arguments.actor,
    }
    if arguments.autoscaling is None:
        options["num_replicas"] = arguments.replicas
    else:
        options["autoscaling_config"] = arguments.autoscaling
    if arguments.request_router is not None:
        from ray.serve.config import RequestRouterConfig

        options["request_router_config"] = RequestRouterConfig(request_router_class=arguments.request_router)
    engines = serve.deployment(serve.ingress(front_of_this_process)(Replica), name="Engine")
    return engines.options(**options).bind(given, steward.bind(given))
