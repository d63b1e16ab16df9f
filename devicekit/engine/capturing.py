"""Whether an engine's models decode from captured graphs, and all that they have captured, as one."""

from __future__ import annotations

from collections.abc import Sequence

from devicekit.contract.errors import ConfigurationError
from devicekit.device import Device
from devicekit.engine.config import EngineConfig
from devicekit.runners.decode_graphs import DecodeGraphs, GraphFigures
from devicekit.runners.model_pools import ModelPools
from devicekit.runners.transformers_runner import TransformersRunner


class EngineGraphs:
    """What an engine's models have captured: a region of memory, released and resumed like the others."""

    def __init__(self, parts: Sequence[DecodeGraphs], obstacle: str = "") -> None:
        """``obstacle``: why there are no ``parts``."""
        self._parts = tuple(parts)
        self._obstacle = obstacle

    @property
    def captures(self) -> bool:
        """Whether anything is ever captured."""
        return bool(self._parts)

    @property
    def figures(self) -> GraphFigures:
        """Of all models together. From any thread."""
        found = [part.figures for part in self._parts]
        return GraphFigures(
            sum(one.graphs for one in found),
            sum(one.replays for one in found),
            sum(one.eager for one in found),
            "; ".join(dict.fromkeys(one.refusal for one in found if one.refusal)) or self._obstacle,
        )

    def release(self) -> None:
        """Drop all of it, and capture nothing until `resume`. How many bytes that is, is not known."""
        for part in self._parts:
            part.release()

    def resume(self) -> None:
        """Capture again what comes up; until then there are no bytes to be told."""
        for part in self._parts:
            part.resume()


def capture_decoding(
    device: Device,
    config: EngineConfig,
    pools: ModelPools,
    runner: TransformersRunner,
    draft: TransformersRunner | None,
) -> EngineGraphs:
    """Have the models capture their decoding, where that can and shall be.

    Raises:
        ConfigurationError: it shall be, and cannot.
    """
    if config.decode_graphs is False:
        return EngineGraphs((), "decode_graphs is off")
    obstacles = {
        f"backend {device.backend.label} lacks create_graph": not device.supports("create_graph"),
        "ranks hold this model together": runner.is_split,
        "this model has recurrent layers": runner.states is not None,
        "its layers with a window have a pool of their own": pools.kv.window_pages is not None,
    }
    found = [obstacle for obstacle, holds in obstacles.items() if holds]
    if not found and config.decode_graphs is None and device.torch_device.type == "cpu":
        found = ["the device is the host, whose launches cost little"]
    if found and config.decode_graphs:
        raise ConfigurationError(f"decode_graphs cannot be had: {' and '.join(found)}")
    if found:
        return EngineGraphs((), " and ".join(found))
    models = [one for one in (runner, draft) if one is not None]
    return EngineGraphs([one.capture_decoding(config.max_running) for one in models])
