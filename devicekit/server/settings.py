"""How a server is set up: where it listens, whom it lets in, and how much it takes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of one server. The defaults are safe on a machine that others use too."""

    host: str = "127.0.0.1"
    port: int = 30000  # 0: any that is free
    served_model_name: str | None = None  # None: the name of the model's directory
    api_key: str | None = None  # demanded by everything but health and metrics
    admin_api_key: str | None = None  # demanded by control endpoints; accepted everywhere
    max_concurrent_requests: int = 1024  # sequences in flight, beyond which the answer is 429
    max_body_bytes: int = 64 << 20
    allowed_weights_roots: tuple[Path, ...] = ()  # empty: the parent of the model's directory
    allow_pickled_weights: bool = False  # read pickles of tensors in shared memory of this machine
    chat_template: str | None = None  # Jinja; None: the tokenizer's own
    health_timeout: float = 20.0  # seconds that a step or a probe may take before health is in doubt
