"""Engines as replicas of a Ray Serve application, steered as one fleet. Needs the extra ``ray``.

Ray spreads the requests of clients over the replicas, starts them and replaces them. Each replica is the server's
own application. What steers engines never goes to one replica by accident: it is caught in front of them and goes
to the fleet, which tells all. A replica is ready for Ray only once it has the fleet's weights.

``build`` makes the application, for ``serve run devicekit.ray_serve:build model=/models/v1 replicas=2`` and for
``serve.run(build(Arguments(model="/models/v1")))``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devicekit.front_door import front_door

if TYPE_CHECKING:
    from devicekit.ray_serve.application import build
    from devicekit.ray_serve.arguments import Arguments

__all__ = ["Arguments", "build"]

__getattr__, __dir__ = front_door(
    __name__,
    {"devicekit.ray_serve.application": ("build",), "devicekit.ray_serve.arguments": ("Arguments",)},
    extra="ray",
)
