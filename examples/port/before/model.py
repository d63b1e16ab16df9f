"""A small decoder whose attention reads keys and values from blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .config import EngineConfig


@dataclass
class Inputs:
    """Tokens of one pass, one line each, whichever sequence they are of."""

    tokens: torch.Tensor  # [tokens]
    positions: torch.Tensor  # [tokens]
    slots: torch.Tensor  # [tokens], where the key and the value go
    tables: torch.Tensor  # [tokens, blocks], the blocks of the token's sequence


class Attention(nn.Module):
    """Every token sees those of its sequence up to itself."""

    places: torch.Tensor  # [length]: 0, 1, 2, ...
    cache: torch.Tensor  # [2, blocks, block size, heads, head size]: keys, values

    def __init__(self, config: EngineConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden, bias=False)
        self.out = nn.Linear(config.hidden, config.hidden, bias=False)
        self.register_buffer("places", torch.arange(config.blocks_per_sequence * config.block_size))

    def forward(self, hidden: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """[tokens, hidden] to [tokens, hidden]; writes the cache."""
        heads, size = self.config.heads, self.config.head_size
        query, key, value = self.qkv(hidden).view(-1, 3, heads, size).unbind(1)
        keys, values = self.cache
        keys.view(-1, heads, size).index_copy_(0, inputs.slots, key)
        values.view(-1, heads, size).index_copy_(0, inputs.slots, value)
        seen = keys[inputs.tables].flatten(1, 2)  # [tokens, length, heads, head size]
        scores = (query.unsqueeze(1) * seen).sum(-1) / size**0.5
        later = self.places.unsqueeze(0) > inputs.positions.unsqueeze(1)
        weights = scores.masked_fill(later.unsqueeze(-1), float("-inf")).softmax(1)
        mixed = (weights.unsqueeze(-1) * values[inputs.tables].flatten(1, 2)).sum(1)
        answer: torch.Tensor = self.out(mixed.flatten(1))
        return answer


class Layer(nn.Module):
    """Attention and a small feed-forward."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.before = nn.LayerNorm(config.hidden)
        self.after = nn.LayerNorm(config.hidden)
        self.up = nn.Linear(config.hidden, 4 * config.hidden)
        self.down = nn.Linear(4 * config.hidden, config.hidden)

    def forward(self, hidden: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """[tokens, hidden] to [tokens, hidden]."""
        hidden = hidden + self.attention(self.before(hidden), inputs)
        answer: torch.Tensor = hidden + self.down(torch.relu(self.up(self.after(hidden))))
        return answer


class Model(nn.Module):
    """Tokens in, scores of the next token out."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.hidden)
        self.positions = nn.Embedding(config.max_length, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.head = nn.Linear(config.hidden, config.vocabulary, bias=False)

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """[tokens, vocabulary]."""
        hidden = self.tokens(inputs.tokens) + self.positions(inputs.positions)
        for layer in self.layers:
            hidden = layer(hidden, inputs)
        scores: torch.Tensor = self.head(hidden)
        return scores

    def use_cache(self, cache: torch.Tensor) -> None:
        """Give each layer its part of [2, layers, blocks, block size, heads, head size]."""
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            layer.attention.cache = cache[:, index]
