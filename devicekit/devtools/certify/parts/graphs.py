"""A decode loop captured once as a graph and replayed for every token gives the tokens of the plain loop."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn import functional

from devicekit.devtools.certify.ground import Ground
from devicekit.devtools.certify.record import Findings, Skipped

_TOKENS = 48


def run(ground: Ground, findings: Findings) -> None:
    """Plain, captured, replayed, and replayed again from another first token."""
    device = ground.device
    if not device.supports("create_graph"):
        raise Skipped(f"backend {device.backend.label} has no create_graph")
    loop = _DecodeLoop(device.torch_device, wide=ground.real)
    expected = {first: loop.tokens(first, loop.step) for first in (3, 11)}  # warms up, too
    device.synchronize()
    graph = device.create_graph()
    loop.restart(0)
    device.synchronize()
    with graph.capture():
        loop.step()
    if device.supports("is_capturing"):
        findings.check("nothing is being captured afterwards", device.is_capturing() is False)
    for first, tokens in expected.items():
        replayed = loop.tokens(first, graph.replay)
        findings.check(
            f"the tokens after {first} are equal",
            replayed == tokens,
            "" if replayed == tokens else f"{tokens}, then {replayed}",
        )
    findings.number("tokens compared", sum(map(len, expected.values())), "")
    findings.number(
        "different tokens among them", len({one for tokens in expected.values() for one in tokens}), ""
    )
    if ground.real:
        for name, step in (("plain", loop.step), ("replayed", graph.replay)):
            device.synchronize()
            started = time.perf_counter()
            loop.tokens(3, step)
            findings.number(f"a token, {name}", (time.perf_counter() - started) / _TOKENS * 1e6, "us")
    graph.reset()
    findings.check(
        "the plain loop still gives them after the graph is gone", loop.tokens(3, loop.step) == expected[3]
    )


class _DecodeLoop:
    """A small decoder whose every step reads and writes the same memory: token, position, keys and values."""

    def __init__(self, device: torch.device, *, wide: bool) -> None:
        size, layers, self._heads, vocabulary = (512, 6, 8, 4096) if wide else (32, 2, 4, 97)
        source = torch.Generator().manual_seed(5)

        def weight(*shape: int) -> torch.Tensor:
            found: torch.Tensor = torch.randn(*shape, generator=source) / shape[-1] ** 0.5
            return found.to(device)

        self._embedding = weight(vocabulary, size) * size**0.5
        self._head = weight(vocabulary, size)
        self._layers = [
            (weight(3 * size, size), weight(size, size), weight(size, size)) for _ in range(layers)
        ]
        self._keys = torch.zeros(layers, _TOKENS, size, device=device)
        self._values = torch.zeros(layers, _TOKENS, size, device=device)
        self._places = torch.arange(_TOKENS, device=device)
        self._token = torch.zeros(1, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._out = torch.zeros(_TOKENS, dtype=torch.int64, device=device)

    def tokens(self, first: int, step: Callable[[], None]) -> list[int]:
        """The tokens that follow ``first``, each made by one call of ``step``."""
        self.restart(first)
        for _ in range(_TOKENS):
            step()
        found: list[int] = self._out.cpu().tolist()
        return found

    def restart(self, first: int) -> None:
        self._token.fill_(first)
        for one in (self._position, self._out):
            one.zero_()
        self._keys.zero_()
        self._values.zero_()

    @torch.no_grad()
    def step(self) -> None:
        hidden = functional.embedding(self._token, self._embedding)
        unseen = (self._places > self._position).view(1, -1)
        for layer, (projection, out, wide) in enumerate(self._layers):
            query, key, value = functional.linear(hidden, projection).chunk(3, dim=-1)
            keys, values = self._keys[layer], self._values[layer]
            keys.index_copy_(0, self._position, key)
            values.index_copy_(0, self._position, value)
            hidden = hidden + functional.linear(self._attend(query, keys, values, unseen), out)
            hidden = hidden + functional.linear(torch.tanh(hidden), wide)
        logits = functional.linear(hidden, self._head)
        self._token.copy_(logits.argmax(dim=-1))
        self._out.index_copy_(0, self._position, self._token)
        self._position.add_(1)

    def _attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, unseen: torch.Tensor
    ) -> torch.Tensor:
        def split(tensor: torch.Tensor) -> torch.Tensor:
            heads: torch.Tensor = tensor.view(tensor.shape[0], self._heads, -1).transpose(0, 1)
            return heads

        scores = split(query) @ split(keys).transpose(1, 2) / (query.shape[-1] // self._heads) ** 0.5
        weights = scores.masked_fill(unseen, float("-inf")).softmax(dim=-1)
        attended: torch.Tensor = weights @ split(values)
        return attended.transpose(0, 1).reshape(1, -1)
