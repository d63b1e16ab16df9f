"""A small text-to-image pipeline with random weights: text encoder, transformer, decoder.

It stands in for pipelines whose components are gigabytes each, in tests and benchmarks: the same shape of work, a
size that runs anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from devicekit.residency.uses import ComponentUse, Stage

_HEADS = 4
_VOCABULARY = 256
_PATCH = 8


class Moves(Protocol):
    """Whatever has components where they are needed."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """For the length of a stage."""
        ...


class Block(nn.Module):
    """Attention and a feed-forward part, each added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One layer, on (batch, length, width)."""
        parts = self.mix(self.norms[0](x)).unflatten(-1, (3, _HEADS, -1))
        query, key, value = (part.transpose(1, 2) for part in parts.unbind(2))
        attended = scaled_dot_product_attention(query, key, value)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        result: torch.Tensor = x + self.feed(self.norms[1](x))
        return result


class TextEncoder(nn.Module):
    """Tokens in, (batch, length, width) out."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCABULARY, width)
        self.register_buffer("scale", torch.tensor(width**0.5))
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Encode (batch, length) token ids."""
        x: torch.Tensor = self.embedding(tokens) * self.scale
        for layer in self.layers:
            x = layer(x)
        return x


class Denoiser(nn.Module):
    """One step from noise towards an image, given the text."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.inward = nn.Linear(width, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.outward = nn.Linear(width, width)

    def forward(self, latent: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Latent and text are (batch, length, width)."""
        x = torch.cat((text, self.inward(latent)), dim=1)
        for layer in self.layers:
            x = layer(x)
        result: torch.Tensor = self.outward(x[:, text.shape[1] :])
        return result


class Decoder(nn.Module):
    """Latent in, pixels out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, 3 * _PATCH * _PATCH), nn.Tanh()
        )

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """A (batch, length, 3 * 8 * 8) picture of one patch for each position."""
        pixels: torch.Tensor = self.layers(latent)
        return pixels


class ExamplePipeline:
    """The three components and their stages.

    Args:
        width: of every component; their weights grow with its square.
        depth: layers of the transformer; the text encoder has half as many.
        steps: how often the transformer runs.
    """

    def __init__(self, width: int = 128, depth: int = 6, steps: int = 3, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.steps = steps
        self.width = width
        self.components: dict[str, nn.Module] = {
            "text_encoder": TextEncoder(width, max(1, depth // 2)).eval(),
            "transformer": Denoiser(width, depth).eval(),
            "decoder": Decoder(width).eval(),
        }

    @staticmethod
    def stages(uses: Mapping[str, ComponentUse] | None = None) -> list[Stage]:
        """Its three stages; ``uses`` replaces a component's plain use by one with flags."""
        chosen = dict(uses or {})
        names = {"encode": "text_encoder", "denoise": "transformer", "decode": "decoder"}
        return [Stage(stage, (chosen.get(name, ComponentUse(name)),)) for stage, name in names.items()]

    def run(self, tokens: torch.Tensor, device: torch.device, moves: Moves | None = None) -> torch.Tensor:
        """An image for (batch, length) token ids on the host.

        Args:
            moves: has the components on the device stage by stage: a `Residency` in which a request is under way.
                Without it they must be there.
        """

        def stage(name: str) -> AbstractContextManager[object]:
            return nullcontext() if moves is None else moves.stage(name)

        noise = torch.linspace(-1, 1, 16 * self.width).reshape(1, 16, self.width)
        with torch.no_grad():
            with stage("encode"):
                text = self.components["text_encoder"](tokens.to(device))
            with stage("denoise"):
                latent = noise.to(device).expand(len(tokens), -1, -1)
                for _ in range(self.steps):
                    latent = latent - self.components["transformer"](latent, text) / self.steps
            with stage("decode"):
                image: torch.Tensor = self.components["decoder"](latent)
            return image.cpu()
