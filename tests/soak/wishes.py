"""What a request's penalties, biases and least length do to the next token of a hashing runner."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from devicekit.scheduling.request import SamplingParams

_U64 = npt.NDArray[np.uint64]


def wish(
    params: SamplingParams, prompt: list[int], output: list[int], ends: set[int]
) -> tuple[int, set[int]]:
    """A number that stands for what is done to which logits, and the tokens that are ruled out.

    Args:
        ends: tokens that would end the output.
    """
    counts = Counter(output)
    biases = dict(params.logit_bias)
    scaled = {*prompt, *output} if params.repetition_penalty != 1 else set()
    ruled_out = ends if len(output) < params.min_new_tokens else set()
    table: dict[int, tuple[float, float]] = {}
    for token in scaled | counts.keys() | biases.keys():
        count = counts[token]
        offset = (
            biases.get(token, 0.0) - params.frequency_penalty * count - params.presence_penalty * (count > 0)
        )
        scale = params.repetition_penalty if token in scaled else 1.0
        if token not in ruled_out and (scale, offset) != (1.0, 0.0):
            table[token] = (scale, offset)
    if not table:
        return 0, ruled_out
    tokens = np.array([*table], np.uint64)
    scales, offsets = np.array([*table.values()], np.float32).T.copy().view(np.uint32).astype(np.uint64)
    bits = mix(tokens) ^ mix(scales) ^ mix(offsets << np.uint64(32))
    return int(bits.sum(dtype=np.uint64)), ruled_out


def mix(value: _U64) -> _U64:
    """A bijection of 64-bit numbers: the one that the hashing runner is made of."""
    shift, factor = np.uint64(32), np.uint64(0xD6E8FEB86659FD93)
    value = (value ^ (value >> shift)) * factor
    value = (value ^ (value >> shift)) * factor
    return value ^ (value >> shift)
