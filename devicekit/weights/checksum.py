"""Digests of weights: equal wherever the same names hold the same values, whatever the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b

import torch

_CHUNK = 64 << 20  # bytes brought to the host at once


def tensor_digest(tensor: torch.Tensor) -> str:
    """Hexadecimal digest of a tensor's type, shape and values (bit by bit, so -0.0 is not 0.0)."""
    digest = blake2b(f"{tensor.dtype}{list(tensor.shape)}".encode(), digest_size=16)
    content = _bytes(tensor)
    for at in range(0, content.numel(), _CHUNK):
        digest.update(content[at : at + _CHUNK].cpu().numpy().data)
    return digest.hexdigest()


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one type and shape hold the same values, bit by bit: NaN is NaN, and -0.0 not 0.0."""
    return torch.equal(_bytes(one), _bytes(other))


def digest_all(tensors: Iterable[tuple[str, torch.Tensor]]) -> tuple[str, dict[str, str]]:
    """One digest over all, whatever their order, and one for each."""
    each = {name: tensor_digest(tensor) for name, tensor in tensors}
    return total_digest(each), each


def total_digest(each: Mapping[str, str]) -> str:
    """The digest over all, of the digest of each."""
    total = blake2b(digest_size=16)
    for name in sorted(each):
        total.update(f"{name}={each[name]}\n".encode())
    return total.hexdigest()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
