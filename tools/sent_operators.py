"""Finds out what an engine sends to a device: ``python -m tools.sent_operators [--write]``.

A whole engine runs on the simulated accelerator, over every example architecture and both kinds of weights, and
each operator that touches the device is noted with the kinds of its arguments. Needs ``devicekit[transformers]``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode

from devicekit_conformance.operators.sent import LIST, Sent

if TYPE_CHECKING:
    from devicekit.device import Device
    from devicekit.engine import Engine
    from devicekit.scheduling.request import SamplingParams

DTYPES = (torch.float32, torch.bfloat16)
_PROMPTS = ("Once upon a time there was", "The sea", "A device is opened once and asked for everything")
_NAMED = (torch.dtype, torch.layout, torch.memory_format)


class _Noting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's mode has no types
    """Notes each operator with a tensor of the device among its arguments or results, once for each kind.

    What is sent while a model is opened tries things out on next to nothing: of a kind that is sent when requests
    are served as well, that is what is kept.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._type = device_type
        self.found: dict[str, Sent] = {}
        self.serving = False
        self._served: set[str] = set()

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        keywords = dict(kwargs or {})
        written = self._note(func, args, keywords)
        result = func(*args, **keywords)
        leaves = tree.tree_leaves((args, keywords, result))
        if any(isinstance(one, torch.Tensor) and one.device.type == self._type for one in leaves):
            self._keep(written)
        return result

    def _keep(self, written: Sent) -> None:
        kind = kind_of(written)
        if kind not in self.found or (self.serving and kind not in self._served):
            self.found[kind] = written
        if self.serving:
            self._served.add(kind)

    def _note(
        self, func: torch._ops.OpOverload, args: tuple[object, ...], keywords: Mapping[str, object]
    ) -> Sent:
        arguments = tuple(_written(one) for one in args)
        return Sent(str(func), arguments, {key: _written(one) for key, one in keywords.items()})


def trace(architectures: Iterable[str], dtypes: Sequence[torch.dtype] = DTYPES) -> dict[str, Sent]:
    """What an engine sends for these architectures, by kind, in the order in which it was first seen."""
    from devicekit.contract.errors import DeviceKitError
    from devicekit.device import get_device
    from devicekit.registry import register_backend, unregister_backend
    from devicekit.testing import simulation
    from devicekit.testing.sim_backend import SimBackend, manifest

    with tempfile.TemporaryDirectory() as folder, simulation():
        register_backend(SimBackend, manifest())
        try:
            device = get_device(manifest().name)
            noting = _Noting(device.torch_device.type)
            for architecture in architectures:
                for dtype in dtypes:
                    root = Path(folder, f"{architecture}-{dtype}")
                    _checkpoint(root, architecture, dtype)
                    try:
                        with noting:
                            _serve(root, device, noting)
                    except DeviceKitError as error:  # the simulation lacks what some layers need
                        print(f"{architecture} in {dtype} was traced in part: {error}", file=sys.stderr)
        finally:
            unregister_backend(manifest().name)
    return noting.found


def _checkpoint(root: Path, architecture: str, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM

    from examples.checkpoints import write_example_checkpoint

    write_example_checkpoint(root, seed=1, architecture=architecture)
    if dtype is not torch.float32:
        AutoModelForCausalLM.from_pretrained(root, dtype=dtype).save_pretrained(root)


def _serve(root: Path, device: Device, noting: _Noting) -> None:
    """What an engine does with a device: prompts of several lengths, and each way of choosing tokens."""
    from devicekit.engine import Engine, EngineConfig
    from devicekit.scheduling.request import SamplingParams

    config = EngineConfig(page_size=4, max_running=3, max_batch_tokens=32, kv_tokens=256)
    noting.serving = False
    engine = Engine.open(root, device=device, config=config)
    noting.serving = True
    base = SamplingParams(max_new_tokens=4, temperature=0.0)
    ways = [
        base,
        replace(base, temperature=0.8, top_k=5, top_p=0.9, min_p=0.05, seed=3),
        replace(base, temperature=1.0, seed=4, logprobs=3),
        replace(base, repetition_penalty=1.3, logit_bias=((5, 2.0),), min_new_tokens=2),
        replace(base, temperature=0.7, frequency_penalty=0.5, presence_penalty=0.5, seed=5),
    ]
    for way in ways:
        _generate(engine, way)


def _generate(engine: Engine, way: SamplingParams) -> None:
    for generation in engine.generate(list(_PROMPTS), way):
        if generation.finish is None:
            raise RuntimeError("a request did not end")


def _written(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return _tensor(value)
    if isinstance(value, torch.device):
        return {"device": "here" if value.type != "cpu" else "host"}
    if isinstance(value, _NAMED):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, (list, tuple)):
        return [_written(one) for one in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"an engine sends {type(value).__name__}, which the list has no form for")


def _tensor(value: torch.Tensor) -> dict[str, object]:
    told: dict[str, object] = {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
    if not value.is_contiguous():
        told["strides"] = list(value.stride())
    if value.device.type == "cpu":
        told["host"] = True
    if not value.dtype.is_floating_point and value.dtype is not torch.bool and value.numel():
        with torch.utils._python_dispatch._disable_current_modes():
            seen = value.detach().cpu().to(torch.int64)
            numbers = seen.flatten().tolist()
            told["low"], told["high"] = min(numbers), max(numbers)
            told["distinct"] = len(set(numbers)) == len(numbers)
    return told


def kind_of(one: Sent) -> str:
    """What makes two calls the same kind: sizes count as none, one or several, layouts by their order."""
    return json.dumps([one.operator, _kind(list(one.arguments)), _kind(dict(one.keywords))], sort_keys=True)


def _kind(value: object) -> object:
    if isinstance(value, dict):
        if "shape" in value:
            sizes = [min(int(size), 2) for size in value["shape"]]
            order = _order(value.get("strides"))
            return ["tensor", value["dtype"], sizes, order, value.get("host", False)]
        return {key: _kind(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_kind(inner) for inner in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return max(-2, min(value, 2))  # dimensions and their counts, the special ones told apart
    return type(value).__name__


def _order(strides: object) -> object:
    if not isinstance(strides, list):
        return None
    return ["expanded" if one == 0 else sorted(strides).index(one) for one in strides]


def lines(found: Mapping[str, Sent]) -> Iterator[str]:
    """The list as it is committed."""
    rows = sorted(json.dumps(one.as_data(), sort_keys=True) for one in found.values())
    yield "[\n"
    yield ",\n".join(rows)
    yield "\n]\n"


def main(argv: Sequence[str]) -> int:
    """Trace, and write the list or say what differs from it."""
    from examples.checkpoints import EXAMPLE_ARCHITECTURES

    found = trace(EXAMPLE_ARCHITECTURES)
    if "--write" in argv:
        LIST.write_text("".join(lines(found)), encoding="utf-8")
        print(f"{LIST}: {len(found)} kinds of {len({one.operator for one in found.values()})} operators")
        return 0
    from devicekit_conformance.operators.sent import sent

    listed = {kind_of(one) for one in sent()}
    new = [one for kind, one in found.items() if kind not in listed]
    for one in new:
        print(f"not in the list: {json.dumps(one.as_data())}")
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
