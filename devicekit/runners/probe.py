"""Finds out what a model keeps per token and request by running one token through it."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch

from devicekit.memory.kv import KVLayout
from devicekit.memory.state import StateLayout, StateTensor
from devicekit.runners import huggingface as hf
from devicekit.runners import own_attention, state_layers
from devicekit.runners.attention import AttentionCall, attending, register
from devicekit.runners.checkpoint import ModelDirectory
from devicekit.runners.errors import UnsupportedModel, one_line
from devicekit.runners.forward import PackedForward
from devicekit.runners.loading import Whole, building, find_wholes, own_tensors
from devicekit.runners.sharding import Sharding, Share, Split
from devicekit.runners.state_layers import (
    MEMORYLESS,
    RECURRENT,
    TESTED_TRANSFORMERS,
    LayerStates,
    Mixer,
    mixing,
    older_than,
)
from devicekit.runners.tensor_parallel import split_model


@dataclass(frozen=True, slots=True)
class ModelSketch:
    """What is known of a model without reading its weights."""

    layout: KVLayout
    weight_bytes: int
    states: StateLayout | None = None  # None: nothing but keys and values
    share: Share | None = None  # None: the whole model
    wholes: Mapping[str, Whole] = field(default_factory=dict)  # what is cut


@dataclass(frozen=True, slots=True)
class ModelLayout:
    """What each layer of a model keeps."""

    kv: KVLayout
    attention_layers: tuple[int, ...]  # the model's numbers of the KV layout's layers
    states: StateLayout | None  # None: no layer is recurrent
    query_heads: int


def sketch_model(
    directory: ModelDirectory, *, dtype: torch.dtype | None = None, split: Split | None = None
) -> ModelSketch:
    """Build the model, or one rank's part of it, without memory and probe it.

    Raises UnsupportedModel as loading would.
    """
    register()
    wanted = dtype or directory.config.get_text_config().dtype or torch.float32
    # Grouped products of experts know only bfloat16 on the meta device; shapes are all that is asked of it.
    with building(directory), torch.device("meta"):
        model = hf.AutoModelForCausalLM.from_config(
            copy.deepcopy(directory.config),
            attn_implementation=own_attention.loads_as(directory.config),
            dtype=torch.bfloat16,
        ).eval()
    sharding = None if split is None else split_model(model, split, path=directory.path)
    layout = probe_layout(model, path=directory.path)
    share = (
        None
        if sharding is None
        else measure_share(model, sharding, layout, path=directory.path, dtype=wanted)
    )
    wholes = {} if sharding is None else find_wholes(model, sharding)
    size = sum(weight.numel() for weight in own_tensors(model).values()) * wanted.itemsize
    states = layout.states
    if states is not None:
        kept = [replace(one, dtype=wanted) if one.dtype == model.dtype else one for one in states.tensors]
        states = StateLayout(tuple(kept))
    return ModelSketch(replace(layout.kv, dtype=wanted), size, states, share, wholes)


def measure_share(
    model: hf.PreTrainedModel,
    sharding: Sharding,
    layout: ModelLayout,
    *,
    path: Path,
    dtype: torch.dtype | None = None,
) -> Share:
    """What a rank holds of a model that was split, in ``dtype`` or in the model's own.

    Raises UnsupportedModel where attention is whole on every rank, and that was not asked for.
    """
    split, text = sharding.split, model.config.get_text_config()
    own = own_tensors(model)
    heads = int(text.num_attention_heads)
    share = Share(
        ranks=split.ranks,
        held=sum(tensor.numel() * (dtype or tensor.dtype).itemsize for tensor in own.values()),
        all=sum(
            math.prod(sharding.whole_shape(name, tensor.shape)) * (dtype or tensor.dtype).itemsize
            for name, tensor in own.items()
        ),
        query_heads=(layout.query_heads, heads),
        kv_heads=(layout.kv.num_kv_heads, int(getattr(text, "num_key_value_heads", None) or heads)),
    )
    if layout.query_heads == heads and split.ranks > 1 and not (split.partly or split.experts):
        raise _refusal(
            model,
            path,
            f"has a plan that leaves its attention whole: {share}. If that will do, say so: split_partly in the "
            "engine's config, --split-partly on the command line",
        )
    return share


def probe_layout(model: hf.PreTrainedModel, *, path: Path) -> ModelLayout:
    """What ``model`` keeps; works on the meta device too, where it costs neither memory nor time.

    Raises UnsupportedModel for a model whose attention does not go through the registry in every layer, or
    asks for something that pages of keys and values cannot answer.
    """
    model_type = model.config.get_text_config().model_type
    _require_served_states(model, model_type, path)
    probe = _Probe()
    forward = PackedForward(model)
    mixed = _run(model, model_type, path, probe, forward)
    reason = _why_not(model, probe, forward)
    if reason is None and mixed and not _holds_nan(model):
        reason = (
            "has tokens look at others in another way than by attention or states: those of another request would "
            "change them"
        )
    if reason is not None:
        raise _refusal(model, path, reason)
    states = StateLayout(tuple(probe.states)) if probe.states else None
    if not probe.calls:
        return ModelLayout(KVLayout.nothing(model.dtype), (), states, 0)
    first = probe.calls[0]
    kv = KVLayout(
        num_layers=len(probe.calls),
        num_kv_heads=first.key.shape[1],
        key_dim=first.key.shape[-1],
        value_dim=first.value.shape[-1],
        dtype=first.key.dtype,
        windows=tuple(call.window for call in probe.calls),
    )
    return ModelLayout(kv, tuple(call.layer for call in probe.calls), states, first.query.shape[1])


def _require_served_states(model: hf.PreTrainedModel, model_type: str, path: Path) -> None:
    if (kind := RECURRENT.get(model_type)) is not None and older_than(kind.since):
        raise _refusal(
            model, path, f"needs transformers {kind.since} or newer; this is {version('transformers')}"
        )
    if model_type not in RECURRENT and (unserved := _unserved_states(model)):
        # Not every release of transformers says so in the config.
        listed = ", ".join(unserved)
        raise _refusal(model, path, f"is a hybrid: {listed} keeps a recurrent state that is not served")


def _run(
    model: hf.PreTrainedModel, model_type: str, path: Path, probe: _Probe, forward: PackedForward
) -> bool:
    """Run two unrelated tokens through a model; whether the first one reached the second."""
    try:
        own_attention.install(model, model_type)
        state_layers.install(model, model_type)
        with torch.no_grad(), attending(probe), mixing(probe), _unknown_first(model):
            # The first token of two that have nothing to do with each other.
            both = torch.zeros(2, dtype=torch.int64, device=model.device)
            logits = forward(both, both.clone(), both[1:] + 1)
            return model.device.type != "meta" and bool(torch.isnan(logits).any())
    except NotImplementedError as error:
        raise _refusal(
            model, path, f"needs an operation that {model.device} does not have: {one_line(error)}"
        ) from error
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError) as error:
        if type(error) is RuntimeError and model.device.type != "meta":
            raise  # it may be the device's, and then has a meaning of its own
        hint = (
            f"; this is transformers {version('transformers')}, tested are {TESTED_TRANSFORMERS}"
            if model_type in RECURRENT
            else ""
        )
        raise _refusal(model, path, f"does not run on packed tokens: {one_line(error)}{hint}") from error


def _holds_nan(model: hf.PreTrainedModel) -> bool:
    """Whether the weights hold NaN already: then its outputs tell nothing."""
    return any(bool(torch.isnan(one.float()).any()) for one in model.parameters())


@contextmanager
def _unknown_first(model: hf.PreTrainedModel) -> Iterator[None]:
    """A block in which the first token's embedding is NaN in each pass, as is all that depends on it."""

    def spoil(module: torch.nn.Module, arguments: object, output: torch.Tensor) -> torch.Tensor:
        spoilt = output.clone()
        spoilt[:, 0] = float("nan")
        return spoilt

    hook = model.get_input_embeddings().register_forward_hook(spoil)
    try:
        yield
    finally:
        hook.remove()


class _Probe:
    """Records what each layer asks for, and answers zeros."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []
        self.states: list[StateTensor] = []

    def attend(self, call: AttentionCall) -> torch.Tensor:
        self.calls.append(call)
        return call.query.new_zeros(1, call.query.shape[2], call.query.shape[1], call.value.shape[-1])

    def mix(self, layer: int, mixer: Mixer, hidden: torch.Tensor, *, continues: bool) -> torch.Tensor:
        kept = LayerStates({})
        output = mixer(hidden[:, -1:], kept)
        for name, state in kept.states.items():
            self.states.append(StateTensor(layer, name, tuple(state.shape[1:]), state.dtype))
        return output.new_zeros(*hidden.shape[:2], output.shape[-1])


def _why_not(model: hf.PreTrainedModel, probe: _Probe, forward: PackedForward) -> str | None:
    calls = probe.calls
    config = model.config.get_text_config()
    layers = config.num_hidden_layers
    needed = {"logits_to_keep"} | ({"position_ids"} if calls and forward.needs_positions else set())
    if absent := needed - forward.parameters:
        return f"does not take {' and '.join(sorted(absent))}, which packed tokens need"
    attending_layers = [call.layer for call in calls]
    recurrent = {one.layer for one in probe.states}
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    memoryless = {at for at, kind in enumerate(kinds) if kind in MEMORYLESS}
    if attending_layers != sorted(set(attending_layers)) or set(
        attending_layers
    ) | recurrent | memoryless != set(range(layers)):
        return (
            f"has {layers - len(recurrent | memoryless)} layers that attend and calls attention that can be "
            f"replaced {len(calls)} times; once in every such layer, in order, is what paging needs"
        )
    if any(call.bias for call in calls):
        return "adds a bias to its attention scores, which paged attention does not do"
    if not all(call.causal for call in calls):
        return "attends to later tokens"
    if (
        len({(call.key.shape[1], call.key.shape[-1], call.value.shape[-1], call.key.dtype) for call in calls})
        > 1
    ):
        return "has layers with keys and values of different shapes"
    # A config without layer types means sliding windows everywhere if it has a window at all.
    everywhere = layers if getattr(config, "sliding_window", None) is not None else 0
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * everywhere
    windows = {call.layer: call.window for call in calls}
    silent = [
        i
        for i, kind in enumerate(kinds)
        if kind in ("sliding_attention", "chunked_attention") and windows.get(i) is None
    ]
    if silent:
        return f"does not tell attention the sliding window of layers {silent}"
    return None


def _unserved_states(model: hf.PreTrainedModel) -> list[str]:
    """Classes of modules that take a cache of states and are not served."""
    served = {kind.module for kind in RECURRENT.values()}
    kinds = {type(module) for module in model.modules()} - {type(model)}
    takers = (kind for kind in kinds if "cache_params" in inspect.signature(kind.forward).parameters)
    return sorted({kind.__name__ for kind in takers} - served)


def _refusal(model: hf.PreTrainedModel, path: Path, reason: str) -> UnsupportedModel:
    return UnsupportedModel(f"{path}: {type(model).__name__} {reason}", path=str(path))
