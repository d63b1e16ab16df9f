"""How a server is set up: where it listens, whom it lets in, and how much it takes on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from devicekit.contract.errors import ConfigurationError
from devicekit.contract.text import shown
from devicekit.field_types import require_types
from devicekit.server.origins import wrong_origins


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of one server. The defaults are safe on a machine that others use too.

    Raises:
        ConfigurationError: with everything that makes no sense.
    """

    host: str = "127.0.0.1"
    port: int = 30000  # 0: any that is free
    served_model_name: str | None = None  # None: the name of the model's directory
    api_key: str | None = field(default=None, repr=False)  # demanded by everything but health and metrics
    admin_api_key: str | None = field(default=None, repr=False)  # demanded by control; accepted everywhere
    allowed_hosts: tuple[
        str, ...
    ] = ()  # names it is reached by, besides addresses and private ones; "*": any
    allowed_origins: tuple[str, ...] = ()  # of web pages that may call it; "*": any, which may not control
    max_concurrent_requests: int = 1024  # sequences in flight, beyond which the answer is 429
    max_body_bytes: int = 64 << 20
    max_bodies_bytes: int = 256 << 20  # all that are read or worked on at once, beyond which: 503
    max_pending_operations: int = 128  # control operations that wait for an answer, beyond which: 429
    allowed_weights_roots: tuple[Path, ...] = ()  # empty: the model's own directory
    allow_pickled_weights: bool = False  # read pickles of tensors in shared memory of this machine
    chat_template: str | None = None  # Jinja; None: the tokenizer's own
    health_timeout: float = 20.0  # seconds that a step or a probe may take before health is in doubt
    logprobs_mode: str = "sampled"  # of which distribution log-probabilities are; "raw": of the model's own
    # Of OpenAI's endpoints: "model" is what generation_config.json says, "openai" temperature 1 and no limits.
    sampling_defaults: str = "model"
    sglang_metrics: bool = False  # offer metrics under SGLang's names too

    drain_seconds: float = 25.0  # that requests in flight get to end when the server is told to stop
    keep_alive_seconds: float = 5.0  # that a connection is kept between two requests

    def __post_init__(self) -> None:
        require_types(self)
        wrong: list[str] = []
        if not 0 <= self.port < 65536:
            wrong.append(f"port must be from 0 to 65535, not {self.port}")
        keys = {"api_key": self.api_key, "admin_api_key": self.admin_api_key}
        wrong += [
            f"{name} is empty, which would let everybody in: leave it out to ask for none"
            for name, key in keys.items()
            if key is not None and not key.strip()
        ]
        wrong += [
            f"{name} begins or ends with a space, or has a character in it that no header can carry"
            for name, key in keys.items()
            if key is not None and key.strip() and (key != key.strip() or not key.isprintable())
        ]
        wrong += wrong_origins(self.allowed_origins)
        sizes = {
            "max_concurrent_requests": self.max_concurrent_requests,
            "max_body_bytes": self.max_body_bytes,
            "max_bodies_bytes": self.max_bodies_bytes,
            "max_pending_operations": self.max_pending_operations,
        }
        wrong += [f"{name} must be at least 1, not {size}" for name, size in sizes.items() if size < 1]
        choices = {"logprobs_mode": ("sampled", "raw"), "sampling_defaults": ("model", "openai")}
        wrong += [
            f"{name} must be {' or '.join(known)}, not {shown(getattr(self, name))}"
            for name, known in choices.items()
            if getattr(self, name) not in known
        ]
        if not 0 < self.health_timeout < math.inf:
            wrong.append(f"health_timeout must be a positive number of seconds, not {self.health_timeout}")
        wrong += [
            f"{name} must be a number of seconds, 0 or more, not {seconds}"
            for name, seconds in {
                "drain_seconds": self.drain_seconds,
                "keep_alive_seconds": self.keep_alive_seconds,
            }.items()
            if not 0 <= seconds < math.inf
        ]
        wrong += [f"there is no directory {root}" for root in self.allowed_weights_roots if not root.is_dir()]
        if wrong:
            raise ConfigurationError("; ".join(wrong))
