"""What a part stands on: the device, a folder, models to serve, and how much time is left."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from devicekit.device import Device

_SIZES: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "tiny": {},
        "small": {
            "hidden_size": 512,
            "intermediate_size": 1408,
            "num_hidden_layers": 8,
            "initializer_range": 0.05,
        },
        "large": {
            "vocab_size": 32_768,
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 12,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
            "initializer_range": 0.05,
        },
    }
)


@dataclasses.dataclass(frozen=True)
class Ground:
    """What a part is given. Written to disk and read in the part's process.

    Attributes:
        spec: as for `devicekit.get_device`; ``None``: the best device of this machine.
        simulate: on the simulated accelerator.
        scratch: a folder that the parts of one run share.
        seconds: the part's time limit.
    """

    spec: str | None
    simulate: bool
    scratch: Path
    seconds: float
    started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until the part is ended."""
        return self.seconds - (time.monotonic() - self.started)

    @cached_property
    def device(self) -> Device:
        """The device that is put to the test.

        Raises:
            as `devicekit.get_device`.
        """
        import torch

        from devicekit.device import get_device

        if self.simulate:
            from devicekit.testing import sim_backend

            found = get_device(sim_backend.register().name)
        else:
            found = get_device(self.spec)
        if self.simulate or found.backend.manifest.host:
            torch.set_num_threads(1)  # the models are tiny: threads cost more than they bring
        return found

    @property
    def on_host(self) -> bool:
        """Whether the device is the host's own processor."""
        return self.device.backend.manifest.host

    @property
    def real(self) -> bool:
        """Whether the device is an accelerator and not a simulated one: times and bytes mean something."""
        return not self.on_host and not self.simulate

    @property
    def dtype(self) -> torch.dtype:
        """Of weights where speed is measured."""
        import torch

        return torch.bfloat16 if self.real else torch.float32

    def model(self, size: str, seed: int = 1) -> Path:
        """A random model on disk, made by the first part that wants it; a tiny one unless the device is real."""
        from devicekit.devtools.reference import write_model

        wanted = size if self.real else "tiny"
        path = self.scratch / f"{wanted}-{seed}"
        if not path.exists():
            unfinished = self.scratch / f"{wanted}-{seed}.unfinished-{time.monotonic_ns()}"
            write_model(unfinished, seed=seed, settings=_SIZES[wanted]).rename(path)
        return path
