"""Serves a Hugging Face causal language model: packed tokens in, next tokens out, keys and values in pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from devicekit.memory.kv import KVLayout, KVPool
from devicekit.memory.mirror import TableMirror, upload
from devicekit.runners import attention, default_dtype, sampling
from devicekit.runners import huggingface as hf
from devicekit.runners.checkpoint import ModelDirectory
from devicekit.runners.decode_graphs import DecodeGraphs
from devicekit.runners.forward import PackedForward
from devicekit.runners.loading import aliases, load_model, load_part, own_tensors
from devicekit.runners.plan import AttentionPlan, to_device, window_slots
from devicekit.runners.probe import measure_share, probe_layout, sketch_model
from devicekit.runners.readback import read_back
from devicekit.runners.reload import StagedModel, UpdateRecord, stage_update
from devicekit.runners.sharding import Exchange, Sharding, Share, Split
from devicekit.runners.state_layers import PackedStates, mixing
from devicekit.scheduling.batch import ForwardBatch, Int32, Int64, ModelLimits, StepOutput

if TYPE_CHECKING:
    from devicekit.device import Device
    from devicekit.memory.state import StateLayout, StatePool


@dataclass(frozen=True, slots=True)
class _Inputs:
    """A batch on the device."""

    tokens: torch.Tensor
    positions: torch.Tensor
    wanted: torch.Tensor  # whose logits are asked for
    plan: AttentionPlan
    paged: attention.PagedAttention


class TransformersRunner:
    """A model on a device, or one rank's part of it.

    ``bind`` a KV pool of its ``layout``, and where it has ``states`` a state pool of those, before the first
    ``step``.
    """

    def __init__(
        self,
        directory: ModelDirectory,
        model: hf.PreTrainedModel,
        device: Device,
        *,
        dtype: torch.dtype | None = None,
        sharding: Sharding | None = None,
    ) -> None:
        """``model`` must have been read from ``directory`` by ``load_model`` and moved to ``device``.

        Args:
            sharding: what this rank holds of it, if not everything.
        """
        self.directory = directory
        self.model = model
        self.device = device
        self.sharding = sharding
        layout = probe_layout(model, path=directory.path)
        self.share: Share | None = None
        if sharding is not None:
            self.share = measure_share(model, sharding, layout, path=directory.path)
        self.layout: KVLayout = layout.kv
        self.states: StateLayout | None = layout.states
        self._limits = replace(
            directory.limits, window=layout.kv.window, partial_window=layout.kv.partial_window
        )
        self._packed = PackedForward(model)
        self._pool_layers = {layer: at for at, layer in enumerate(layout.attention_layers)}
        self._stored = directory.stored_tensors()
        self._dtype = dtype
        self._pool: KVPool | None = None
        self._in_place = False
        self._state_pool: StatePool | None = None
        self._mirror: TableMirror | None = None
        self.graphs: DecodeGraphs | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: Device,
        *,
        dtype: torch.dtype | None = None,
        split: Split | None = None,
    ) -> TransformersRunner:
        """Read a local model directory onto ``device``, in ``dtype`` or as the config says.

        Args:
            split: keep one rank's part of it, and have it `exchange` before the first step.

        Raises InvalidModelDirectory or UnsupportedModel, before any weight is read where that is possible.
        """
        attention.register()
        directory = ModelDirectory.open(path)
        if split is None:
            model = load_model(directory, dtype=dtype).to(device.torch_device)
            try:
                return cls(directory, model, device, dtype=dtype)
            except RuntimeError:
                sketch_model(directory, dtype=dtype)  # says so if it is the model, whatever the device
                raise
        # Raises if the model cannot be served, before a weight is read.
        sketch = sketch_model(directory, dtype=dtype, split=split)
        model, sharding = load_part(directory, dtype=dtype, split=split, wholes=sketch.wholes)
        return cls(directory, model.to(device.torch_device), device, dtype=dtype, sharding=sharding)

    @property
    def is_split(self) -> bool:
        """Whether other ranks hold the rest of the model."""
        return self.sharding is not None

    def exchange(self, exchange: Exchange) -> None:
        """Use this exchange to reach the other ranks."""
        if self.sharding is None:
            raise ValueError("this model is whole, and has nothing to exchange")
        self.sharding.exchange = exchange

    @property
    def limits(self) -> ModelLimits:
        return self._limits

    def bind(self, pool: KVPool, states: StatePool | None = None) -> None:
        """Use these pools from now on. ``pool`` may differ from the model in dtype, not in shape (ValueError)."""
        if replace(pool.layout, dtype=self.layout.dtype, windows=self.layout.windows) != self.layout:
            raise ValueError(f"the pool's layout {pool.layout} does not fit the model's {self.layout}")
        if (None if states is None else states.layout) != self.states:
            raise ValueError(f"the state pool {states} does not fit the model's {self.states}")
        self._pool = pool
        self._state_pool = states
        # Where a call costs as little as on the host; keys of another dtype are copied anyway.
        self._in_place = (
            bool(self._pool_layers) and pool.key(0).is_cpu and pool.layout.dtype == self.layout.dtype
        )

    def capture_decoding(self, most: int) -> DecodeGraphs:
        """Replay passes that only decode from graphs from now on; ``most``: requests that run at a time, at most.

        For whole models without recurrent layers, on devices with the hook `create_graph`.
        """
        self.graphs = DecodeGraphs(self.device, self._packed, self._pool_layers, most)
        return self.graphs

    def step(self, batch: ForwardBatch) -> StepOutput:
        """Write the batch's keys and values into the pool and return the wanted tokens."""
        pool = self._bound()
        # Not inference mode: its tensors carry no version counter, which backends written in Python trip over.
        with default_dtype.in_use, torch.no_grad():
            if self.graphs is not None:
                try:
                    logits = self.graphs.logits(batch, pool, self._pages(batch))
                    return self._answer(batch, self._logits(batch, pool) if logits is None else logits)
                except Exception as error:
                    self.graphs.note_failure(error)
                    raise
            if self._state_pool is None:
                return self._answer(batch, self._logits(batch, pool))
            states = PackedStates(self._state_pool, batch, self.device.torch_device)
            with mixing(states):
                output = self._answer(batch, self._logits(batch, pool))
            states.commit()
            return output

    def prepare(self, batch: ForwardBatch) -> Callable[[], StepOutput]:
        """As `SplitRunner.prepare`: uploads, plans attention, and sees whether there is memory for the rest."""
        pool = self._bound()
        with default_dtype.in_use, torch.no_grad():
            inputs = self._inputs(batch, pool)
            for window in set(self.layout.windows or (None,)):
                inputs.plan.segments(window)
                inputs.plan.reaches(window)
            self._foresee(batch)

        def run() -> StepOutput:
            with default_dtype.in_use, torch.no_grad():
                return self._answer(batch, self._forward(inputs))

        return run

    def _bound(self) -> KVPool:
        if self._pool is None:
            raise RuntimeError("bind a KV pool before the first step")
        return self._pool

    def _foresee(self, batch: ForwardBatch) -> None:
        """Allocate at once as much memory as the pass may need bit by bit, and free it."""
        text = self.model.config.get_text_config()
        width = 4 * text.hidden_size + 3 * (getattr(text, "intermediate_size", None) or 4 * text.hidden_size)
        asked = len(batch.logits_indices) + (0 if batch.scored is None else len(batch.scored.at))
        size = len(batch.input_ids) * width * self.layout.dtype.itemsize + 3 * 4 * asked * text.vocab_size
        torch.empty(size, dtype=torch.uint8, device=self.device.torch_device)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter and persistent buffer once, by the model's own names; tied tensors under their first.

        Those are the checkpoint's names too, except where transformers fuses tensors as it loads them, as it
        does with the experts of some mixtures.
        """
        yield from own_tensors(self.model).items()

    def weight_aliases(self) -> dict[str, str]:
        """Further names of tied weights, and the name under which `named_weights` has them."""
        return aliases(self.model)

    def update_from_disk(self, path: str | Path) -> UpdateRecord:
        """Load another checkpoint of the same architecture into the tensors that are there.

        Raises InvalidModelDirectory, UnsupportedModel or CheckpointMismatch, in which case no weight has
        changed. Keys and values that were computed with the old weights are the caller's business.
        """
        staged = self.stage_from_disk(path)
        record = staged.write()
        staged.settle()
        return record

    def stage_from_disk(self, path: str | Path, within: Sequence[str] = ()) -> StagedModel:
        """Read another checkpoint of the same architecture and check that it fits. The caller writes and settles.

        ``within``: as for `ModelDirectory.open`. Raises as `update_from_disk`.
        """
        directory = ModelDirectory.open(path, within)

        def settle() -> None:
            self.directory = directory

        return stage_update(
            self.model,
            self._stored,
            directory,
            dtype=self._dtype,
            settle=settle,
            sharding=self.sharding or Sharding(Split(1)),
        )

    def _answer(self, batch: ForwardBatch, logits: torch.Tensor) -> StepOutput:
        logprobs = scored = None
        if batch.scored is not None:
            logits, prompts = logits[: len(batch.logits_indices)], logits[len(batch.logits_indices) :]
            targets = upload(batch.scored.targets, logits.device).long()
            scored = sampling.log_probabilities(prompts, targets, batch.scored.top, batch.scored.picks)
        adjusted = logits if batch.adjustments is None else sampling.adjust(logits, batch.adjustments)
        if batch.masks is not None:
            adjusted = sampling.mask(adjusted, batch.masks)
        tokens = sampling.choose(adjusted, batch.sampling)
        # A row's greatest logit is NaN if one of them is, and infinite if one is or all are minus infinity.
        sound = torch.isfinite(logits.amax(dim=-1))
        answer = torch.where(sound, tokens, -1 - tokens).to(torch.int32)
        if batch.top_logprobs is not None:
            logprobs = _log_probabilities(batch, logits, adjusted, tokens, batch.top_logprobs)
        measured = [one for one in (logprobs, scored) if one is not None]
        chosen, *figures = read_back([answer, *(tensor for one in measured for tensor in one.tensors)])
        invalid = bool(len(chosen)) and int(chosen.min()) < 0
        return StepOutput(
            chosen,
            None if logprobs is None else logprobs.taken_from(figures),
            None if scored is None else scored.taken_from(figures),
            invalid,
        )

    def _inputs(self, batch: ForwardBatch, pool: KVPool) -> _Inputs:
        device = self.device.torch_device
        asked: Int32 | Int64 = batch.logits_indices
        if batch.scored is not None:
            asked = np.concatenate((batch.logits_indices.astype(np.int64), batch.scored.at))
        arrays: list[Int32 | Int64] = [batch.input_ids, batch.positions, asked, batch.slot_mapping]
        if batch.window_pages is not None:
            arrays.append(window_slots(batch, batch.window_pages))
        tokens, positions, wanted, *slots = to_device(arrays, device)
        plan = AttentionPlan(batch, device, self._pages(batch), in_place=self._in_place)
        paged = attention.PagedAttention(
            pool, plan, slots[0], self._pool_layers, positions, slots[1] if len(slots) > 1 else None
        )
        return _Inputs(tokens, positions, wanted, plan, paged)

    def _logits(self, batch: ForwardBatch, pool: KVPool) -> torch.Tensor:
        return self._forward(self._inputs(batch, pool))

    def _forward(self, inputs: _Inputs) -> torch.Tensor:
        """Logits of the wanted positions and of the scored ones behind them: [L + S, vocabulary], float32."""
        with attention.attending(inputs.paged):
            return self._packed(inputs.tokens, inputs.positions, inputs.wanted).float()

    def _pages(self, batch: ForwardBatch) -> torch.Tensor:
        """The request table on the device. Of a table that was seen before, only what changed is uploaded."""
        if self._mirror is None or self._mirror.table is not batch.table:
            self._mirror = TableMirror(batch.table, self.device.torch_device)
        self._mirror.sync()
        return self._mirror.tensor


def _log_probabilities(
    batch: ForwardBatch, logits: torch.Tensor, adjusted: torch.Tensor, tokens: torch.Tensor, top: int
) -> sampling.Measured:
    """Of the distribution that tokens were drawn from, or of the model's own where that was asked for."""
    drawn_from = sampling.tempered(adjusted, batch.sampling)
    if batch.logprobs is None:
        return sampling.log_probabilities(drawn_from, tokens, top)
    if batch.logprobs.raw.any():
        raw = upload(batch.logprobs.raw, logits.device).unsqueeze(1)
        drawn_from = torch.where(raw, logits, drawn_from)
    return sampling.log_probabilities(drawn_from, tokens, top, batch.logprobs.picks)
