"""Splits a model by the plan that transformers has for it: `PreTrainedModel.tp_plan` and ``ep_plan``.

A plan names modules and parameters, and for each a style. All styles that are known here are in this file, with
what they mean for a parameter and for a module's forward pass. Parameters become plain tensors, this rank's part
of them, and are computed with as they are; a few modules exchange their results with the other ranks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import cast

import torch
from packaging.version import Version
from torch import nn

from devicekit.runners import huggingface as hf
from devicekit.runners.cuts import Cut, even, kv_heads, packed
from devicekit.runners.errors import UnsupportedModel
from devicekit.runners.sharding import Sharding, Split
from devicekit.runners.state_layers import RECURRENT

TESTED_TRANSFORMERS = (5, 22), (5, 24)
"""The first and the last releases whose plans are held to the whole model's tokens and bytes."""

_COLUMNS = frozenset({"colwise", "colwise_gather_output", "colwise_rep"})
_ROWS = frozenset({"rowwise", "rowwise_split_input", "rowwise_rep"})
_GATHERED = frozenset({"colwise_gather_output", "colwise_rep"})
_SPLIT_INPUT = frozenset({"rowwise_split_input", "rowwise_rep"})
_EMBEDDINGS = frozenset({"embedding_rowwise", "embedding_colwise"})
_SUMMED = frozenset({"moe_tp_experts", "all_reduce"})
# They concern gradients, or what our forward pass does anyway.
_WHOLE = frozenset({"replicate", "replicated_with_grad_allreduce", "local_params"})
_PACKED, _EXPERTS, _DISPATCH = "packed_colwise", "grouped_gemm", "ep_dispatch_experts"
_KNOWN = _COLUMNS | _ROWS | _EMBEDDINGS | _SUMMED | _WHOLE | {_PACKED, _EXPERTS, _DISPATCH}
_GATE_AND_UP = 2  # what lies one behind the other in a packed projection


def split_model(model: hf.PreTrainedModel, split: Split, *, path: Path) -> Sharding:
    """Leave one rank's part of its parameters in a model. After UnsupportedModel it cannot be used any more."""
    splitter = Splitter(model, split, path)
    splitter.cut()
    return splitter.install()


@dataclass(slots=True)
class _Rule:
    """What a plan says of a module and of its own parameters."""

    name: str
    module: nn.Module
    style: str | None
    parameters: dict[str, str]  # by their names in the module


class Splitter:
    """Splits one model: cuts its parameters first, and lets modules exchange once parameters have values."""

    def __init__(self, model: hf.PreTrainedModel, split: Split, path: Path) -> None:
        self._model = model
        self._split = split
        self._path = path
        self._text = model.config.get_text_config()
        self._sharding = Sharding(split)
        self._to_install: list[_Rule] = []

    def cut(self) -> None:
        """Put this rank's part in the place of each parameter. Raises UnsupportedModel."""
        if self._text.model_type in RECURRENT:
            raise self._refusal("has recurrent layers, which ranks cannot hold together here")
        rules = self._rules(self._plan())
        self._leave_whole_where_tied_to_whole(rules)
        cuts: dict[str, Cut] = {}
        fresh: dict[int, tuple[nn.Parameter, Cut]] = {}  # by what they replace: tied parameters stay one
        for rule in rules:
            for own, style in rule.parameters.items():
                old = cast("nn.Parameter", getattr(rule.module, own))
                cut = self._cut(rule, own, old, style)
                if cut is None:
                    continue
                if id(old) in fresh and fresh[id(old)][1] != cut:
                    raise self._refusal(f"holds {rule.name}.{own} in one tensor with another, cut elsewhere")
                if id(old) not in fresh:
                    part = cut.part(old.data, self._split.rank).contiguous().clone()
                    fresh[id(old)] = nn.Parameter(part, requires_grad=False), cut
                setattr(rule.module, own, fresh[id(old)][0])
                cuts[f"{rule.name}.{own}"] = cut
        self._sharding.cuts = cuts
        self._to_install = rules

    def install(self) -> Sharding:
        """Let modules exchange what they compute. Raises UnsupportedModel."""
        for rule in self._to_install:
            if rule.style is not None:
                self._install(rule, rule.style)
        return self._sharding

    # -- The plan ---------------------------------------------------------------------------------------------

    def _plan(self) -> Mapping[str, str]:
        self._require_tested_plans()
        plan: dict[str, str] = dict(getattr(self._model, "tp_plan", None) or {})
        if self._split.experts:
            experts: dict[str, str] = dict(getattr(self._model, "ep_plan", None) or {})
            if not experts:
                raise self._refusal("has no plan in transformers by which experts could be given to ranks")
            plan = {name: style for name, style in plan.items() if not _within(name, experts)} | experts
        if not plan:
            raise self._refusal("has no plan in transformers by which it could be split (tp_plan)")
        if unknown := sorted(set(plan.values()) - _KNOWN):
            raise self._refusal(
                f"is to be split in a way that is not known here: {', '.join(unknown)}; known are the plans of "
                f"transformers {_tested()}"
            )
        return plan

    def _require_tested_plans(self) -> None:
        """Refuse untested versions: plans change with every release, and may leave or cut weights wrongly."""
        found = version("transformers")
        first, last = TESTED_TRANSFORMERS
        if not first <= Version(found).release[:2] <= last:
            wanted = f"transformers>={first[0]}.{first[1]},<{last[0]}.{last[1] + 1}"
            raise self._refusal(
                f"cannot be split by the plans of transformers {found}: those of {_tested()} were held to the "
                f"whole model's tokens (pip install '{wanted}')"
            )

    def _rules(self, plan: Mapping[str, str]) -> list[_Rule]:
        found: list[_Rule] = []
        for name, module in self._model.named_modules():
            style = plan.get(_pattern(name))
            parameters: dict[str, str] = {}
            for own, _ in module.named_parameters(recurse=False, remove_duplicate=False):
                said = plan.get(_pattern(f"{name}.{own}"), style)
                if said is not None:
                    parameters[own] = said
            if style is not None or parameters:
                found.append(_Rule(name, module, style, parameters))
        return found

    def _leave_whole_where_tied_to_whole(self, rules: list[_Rule]) -> None:
        """Leave a tensor of two modules whole unless the plan names both."""
        named = {f"{rule.name}.{own}" for rule in rules for own in rule.parameters}
        every = list(self._model.named_parameters(remove_duplicate=False))
        whole = {id(tensor) for name, tensor in every if name not in named}
        for rule in list(rules):
            if any(id(getattr(rule.module, own)) in whole for own in rule.parameters):
                rules.remove(rule)

    # -- Parameters -------------------------------------------------------------------------------------------

    def _cut(self, rule: _Rule, own: str, tensor: torch.Tensor, style: str) -> Cut | None:
        ranks, shape = self._split.ranks, tensor.shape
        if style in _COLUMNS:
            dim = max(tensor.dim() - 2, 0)
            if (of_heads := self._attention_cut(rule.name, dim, shape[dim])) is not None:
                return of_heads
            return self._even(rule, dim, shape[dim], uneven=style in _GATHERED)
        if style in _ROWS:
            if tensor.dim() == 1:
                return None  # a bias, added once, to the sum
            dim = tensor.dim() - 1
            if (of_heads := self._attention_cut(rule.name, dim, shape[dim])) is not None:
                return of_heads
            return self._even(rule, dim, shape[dim])
        if style in _EMBEDDINGS:
            return even(
                0 if style == "embedding_rowwise" else 1, shape[int(style != "embedding_rowwise")], ranks
            )
        if style == _PACKED:
            dim = max(tensor.dim() - 2, 0)
            if shape[dim] % (ranks * _GATE_AND_UP):
                raise self._refusal(
                    f"has {shape[dim]} rows in {rule.name}.{own}, which {ranks} ranks cannot share"
                )
            return packed(dim, shape[dim], ranks, _GATE_AND_UP)
        if style == _EXPERTS:
            return self._even(rule, 0, shape[0])
        return None

    def _even(self, rule: _Rule, dim: int, size: int, *, uneven: bool = False) -> Cut:
        if size % self._split.ranks and not uneven:
            raise self._refusal(
                f"has {size} of what {self._split.ranks} ranks would have to share evenly in {rule.name}"
            )
        return even(dim, size, self._split.ranks)

    def _attention_cut(self, name: str, dim: int, size: int) -> Cut | None:
        """The cut of a projection to or from heads; ``None`` for any other."""
        leaf = name.rpartition(".")[2]
        if leaf not in ("q_proj", "k_proj", "v_proj", "o_proj"):
            return None
        heads = int(self._text.num_attention_heads)
        kv = int(getattr(self._text, "num_key_value_heads", None) or heads)
        if heads % self._split.ranks:
            raise self._refusal(f"has {heads} heads, which {self._split.ranks} ranks cannot share")
        of = kv if leaf in ("k_proj", "v_proj") else heads
        if heads % kv or size % of:
            raise self._refusal(f"has {size} of what {of} heads would share evenly in {name}")
        return kv_heads(dim, size, self._split.ranks, heads, of)

    # -- Modules ----------------------------------------------------------------------------------------------

    def _install(self, rule: _Rule, style: str) -> None:
        module, sharding = rule.module, self._sharding
        if style in _COLUMNS | _ROWS:
            if type(module) is not nn.Linear:  # of others it is not known how they compute
                raise self._refusal(f"has a {type(module).__name__} where a linear layer is to be split")
            cut = sharding.cuts[f"{rule.name}.weight"]
            if style in _GATHERED:
                _compute_by(module, _gathered(module, sharding, cut))
            elif style in _ROWS:
                _compute_by(module, _summed_rows(module, sharding, cut, split_input=style in _SPLIT_INPUT))
        elif style in _EMBEDDINGS:
            cut = sharding.cuts[f"{rule.name}.weight"]
            if cut.dim:
                _compute_by(module, _gathered(module, sharding, cut))
            else:
                _compute_by(module, _looked_up(module, sharding, cut))
        elif style in _SUMMED:
            _compute_by(module, _summed(module, sharding))
        elif style == _DISPATCH:
            _compute_by(module, _dispatched(module, sharding, self._experts_cut(rule)))

    def _experts_cut(self, rule: _Rule) -> Cut:
        cuts = [cut for name, cut in self._sharding.cuts.items() if name.startswith(f"{rule.name}.")]
        if not cuts or not hasattr(rule.module, "num_experts"):
            raise self._refusal(f"does not say how many experts {rule.name} has")
        return cuts[0]

    def _refusal(self, reason: str) -> UnsupportedModel:
        message = f"{self._path}: {type(self._model).__name__} {reason}"
        return UnsupportedModel(message, path=str(self._path))


def _tested() -> str:
    (major, first), (_, last) = TESTED_TRANSFORMERS
    return f"{major}.{first} to {major}.{last}"


Forward = Callable[..., torch.Tensor]


def _compute_by(module: nn.Module, forward: Forward) -> None:
    module.forward = forward


def _gathered(module: nn.Module, sharding: Sharding, cut: Cut) -> Forward:
    """Each rank computes some of the columns, and all ranks get all of them."""
    compute = cast("Forward", module.forward)

    def forward(*args: object, **kwargs: object) -> torch.Tensor:
        part = compute(*args, **kwargs)
        columns = Cut(part.dim() - 1, cut.size, cut.runs)
        return columns.assemble(sharding.gather(columns, part))

    return forward


def _summed_rows(module: nn.Linear, sharding: Sharding, cut: Cut, *, split_input: bool) -> Forward:
    """Each rank computes with some of the input's columns, and the results are added up."""

    def forward(input: torch.Tensor) -> torch.Tensor:
        if split_input:
            input = Cut(input.dim() - 1, cut.size, cut.runs).part(input, sharding.split.rank)
        output = nn.functional.linear(input, module.weight)
        sharding.exchange.sum(output)
        return output if module.bias is None else output + module.bias

    return forward


def _looked_up(module: nn.Module, sharding: Sharding, cut: Cut) -> Forward:
    """Each rank knows some of the tokens, and gives zeros for the others."""
    compute = cast("Forward", module.forward)
    [(start, end)] = cut.runs[sharding.split.rank]

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        if end == start:
            return _zeros_from_others(module, sharding, tokens)
        elsewhere = (tokens < start) | (tokens >= end)
        found = compute((tokens - start).masked_fill_(elsewhere, 0))
        found = found.masked_fill_(elsewhere.unsqueeze(-1), 0)
        sharding.exchange.sum(found)
        return found

    return forward


def _zeros_from_others(module: nn.Module, sharding: Sharding, tokens: torch.Tensor) -> torch.Tensor:
    weight = cast("torch.Tensor", module.weight)
    found = weight.new_zeros(*tokens.shape, weight.shape[1])
    sharding.exchange.sum(found)
    return found


def _summed(module: nn.Module, sharding: Sharding) -> Forward:
    """Each rank computes with a part of every expert."""
    compute = cast("Forward", module.forward)

    def forward(*args: object, **kwargs: object) -> torch.Tensor:
        output = compute(*args, **kwargs).contiguous()
        sharding.exchange.sum(output)
        return output

    return forward


def _dispatched(module: nn.Module, sharding: Sharding, cut: Cut) -> Forward:
    """Each rank computes its own experts, and adds nothing for the others."""
    compute = cast("Forward", module.forward)
    [(start, end)] = cut.runs[sharding.split.rank]
    # transformers' own kernels for experts skip the number behind the last one, if they are told of it.
    skips = getattr(module, "_is_expert_parallel", None) is not None and not _eager(module)
    if skips:
        module._is_expert_parallel = True  # type: ignore[assignment]  # modules are untyped
    module.num_experts = end - start  # type: ignore[assignment]  # modules are untyped
    nobody = end - start if skips else 0

    def forward(hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        elsewhere = (chosen < start) | (chosen >= end)
        local = (chosen - start).masked_fill(elsewhere, nobody)
        output = compute(hidden, local, weights.masked_fill(elsewhere, 0.0)).contiguous()
        sharding.exchange.sum(output)
        return output

    return forward


def _eager(module: nn.Module) -> bool:
    return getattr(getattr(module, "config", None), "_experts_implementation", "eager") in (None, "eager")


def _pattern(name: str) -> str:
    """A name as plans spell it: with a star for the number of a layer."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _within(name: str, rules: Mapping[str, str]) -> bool:
    return any(name == rule or name.startswith(f"{rule}.") for rule in rules)
