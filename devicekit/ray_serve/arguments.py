"""What an application on Ray Serve is built from."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Arguments(BaseModel):
    """Arguments of `devicekit.ray_serve.build`. Ray gives each by its name, as text or in a configuration file.

    ``engine`` and ``server`` take the fields of `EngineConfig` and `ServerSettings` by their names.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="model directory; every node finds it under this path")
    replicas: int = Field(default=1, ge=1, description="engines; not used where autoscaling is given")
    autoscaling: dict[str, object] | None = Field(default=None, description="Ray's autoscaling_config")
    actor: dict[str, object] = Field(
        default_factory=dict, description="Ray's ray_actor_options of a replica, such as num_gpus"
    )
    device: str | None = Field(
        default=None, description="backend of each replica; default: the best there is"
    )
    fleet_file: Path = Field(
        default=Path("fleet.json"), description="what the fleet remembers, on the fleet's node"
    )
    weights_root: Path | None = Field(
        default=None, description="where updates may be read from; default: the model"
    )
    control_host: str = Field(
        default="127.0.0.1",
        description="address of the replicas' own ports, by which the fleet reaches them; 'node': the address of "
        "the replica's node, for several nodes",
    )
    api_key_file: Path | None = Field(default=None, description="the key of clients, on every node")
    admin_api_key_file: Path | None = Field(default=None, description="the key of operators, on every node")
    max_ongoing_requests: int = Field(default=256, ge=1, description="that Ray sends to a replica at a time")
    request_router: str | None = Field(
        default=None,
        description="a router of Ray's, as module:class; default: Ray's own, by the shorter of two queues",
    )
    tend_every: float = Field(
        default=2.0, gt=0, description="seconds between two looks of the fleet at its engines"
    )
    engine: dict[str, object] = Field(default_factory=dict, description="fields of EngineConfig")
    server: dict[str, object] = Field(default_factory=dict, description="fields of ServerSettings")
