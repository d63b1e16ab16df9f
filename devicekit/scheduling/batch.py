"""What the scheduler hands to a runner, and what it gets back: one forward pass as flat arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from devicekit.ranges import whole
from devicekit.renamed import renamed_attribute

if TYPE_CHECKING:
    import torch

    from devicekit.memory.rows import RequestTable

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


@dataclass(slots=True)
class SamplingArrays:
    """Sampling parameters of the ``L`` positions that want a token, one entry per position.

    A step in which every position is greedy carries no ``SamplingArrays`` at all.
    """

    temperature: Float32  # [L]; 0 means greedy
    top_k: Int32  # [L]; 0 means no limit
    top_p: Float32  # [L]; 1 means no limit
    min_p: Float32  # [L]; 0 means no limit
    seed: Int64  # [L]; with `position` it fixes the draw, whatever else is in the batch
    position: Int64  # [L]; index of the token being drawn within its own sequence


@dataclass(slots=True)
class LogitAdjustments:
    """What to do to single logits before a token is chosen, one entry per pair of position and token.

    First the scale: a logit above 0 is divided by it, any other multiplied. Then the offset is added. No pair
    comes twice. A step in which nobody wants anything done carries no ``LogitAdjustments`` at all.
    """

    rows: Int64  # [E] index into the wanted positions
    tokens: Int64  # [E]
    scales: Float32  # [E] above 0; 1: none
    offsets: Float32  # [E] minus infinity: never this token


@dataclass(slots=True)
class Picks:
    """Tokens whose log-probability is asked for by their id, one entry per pair of position and token."""

    rows: Int64  # [E] index into the positions
    tokens: Int64  # [E]


@dataclass(slots=True)
class LogprobWishes:
    """Which log-probabilities are wanted: of which distribution, and of which further tokens.

    Usually of the distribution that the token was drawn from: adjusted, and divided by the temperature if that is
    not 0.
    """

    raw: npt.NDArray[np.bool_]  # [L] of the logits as the model gives them
    picks: Picks | None = None


@dataclass(slots=True)
class ScoredPositions:
    """Prompt positions at which the log-probability of the token that follows is wanted, as the model gives it."""

    at: Int64  # [S] indices into tokens
    targets: Int32  # [S] the tokens that follow
    top: int  # how many of the likeliest
    picks: Picks | None = None


@dataclass(slots=True)
class TokenMasks:
    """Which tokens may come next at some of the wanted positions; all may at the others."""

    rows: Int64  # [M] index into the wanted positions
    bits: Int32  # [M, vocabulary / 32] bit t % 32 of word t // 32 is set if token t may come


@dataclass(slots=True)
class ForwardBatch:
    """One forward pass over the packed tokens of ``B`` sequences, ``T`` tokens in all.

    Sequence ``i`` has the tokens ``query_start_loc[i]:query_start_loc[i + 1]``. Its keys and values of positions
    ``0 .. seq_lens[i] - 1`` are (after this pass has written its own) in the KV pool at the slots that
    ``page_table[req_pool_indices[i]]`` names: ``page * page_size + position % page_size``.
    """

    input_ids: Int32  # [T]
    positions: Int32  # [T] position of each token in its own sequence
    slot_mapping: Int64  # [T] KV slot that each token's key and value are written to
    req_pool_indices: Int32  # [B] rows of the request table
    query_start_loc: Int32  # [B + 1] offsets into the tokens
    seq_lens: Int32  # [B] keys that the last token of each sequence attends to, itself included
    table: RequestTable  # whose `pages` the rows index; a runner may keep a `TableMirror` of it
    page_size: int
    logits_indices: Int32  # [L] indices into the tokens whose next token is wanted
    sampling: SamplingArrays | None = None  # None: every wanted token is greedy
    top_logprobs: int | None = None  # how many log-probabilities per wanted token; None: none at all
    adjustments: LogitAdjustments | None = None  # None: tokens are chosen by the logits as they are
    state_slots: Int32 | None = None  # [B] of each sequence; None: the model has no recurrent layers
    # [n, 2] state slots to be copied, the first to the second; None: none at all.
    restored_states: Int32 | None = None  # before the pass
    kept_states: Int32 | None = None  # when it has succeeded
    # [pages + 1] the page that stands for each page in layers with a window; None: the same one. 0: no token of
    # this batch looks there.
    window_pages: Int32 | None = None
    # None: of the distribution that tokens are drawn from, and of no others.
    logprobs: LogprobWishes | None = None
    masks: TokenMasks | None = None  # None: any token may come anywhere
    scored: ScoredPositions | None = None  # None: nothing is asked of prompts

    def __getattr__(self, name: str) -> Any:  # whatever the array is
        return renamed_attribute(self, name, _RENAMED)

    @property
    def page_table(self) -> Int32:
        """[rows, pages_per_row] the request table's pages, on the host."""
        return self.table.pages

    @property
    def num_sequences(self) -> int:
        return len(self.req_pool_indices)


_RENAMED = {
    "lengths": "seq_lens",
    "rows": "req_pool_indices",
    "slots": "slot_mapping",
    "starts": "query_start_loc",
    "tokens": "input_ids",
    "wanted": "logits_indices",
}


@dataclass(slots=True)
class Logprobs:
    """Log-probabilities at some positions, natural logarithm. NaN where the logits are NaN or infinite."""

    chosen: Float32  # [L]
    top_ids: Int32  # [L, k] the likeliest, in order
    top_values: Float32  # [L, k]
    picked: Float32 | None = None  # [E] of the tokens that were asked for by their ids


@dataclass(slots=True)
class StepOutput:
    """The next token of each wanted position.

    Where the logits are NaN or infinite there is no token: ``invalid`` is set, and ``tokens`` has ``-1 - t``
    there, where ``t`` is what would have been chosen regardless.
    """

    tokens: Int32  # [L]
    logprobs: Logprobs | None = None
    prompt_logprobs: Logprobs | None = None  # of the scored positions
    invalid: bool = False  # some tokens are negative


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a model accepts."""

    vocab_size: int
    max_positions: int  # prompt and output together, tokens
    eos_token_ids: frozenset[int]
    # Keys that a token sees in any layer, itself included; None: all, in some layer.
    window: int | None = None
    partial_window: int | None = None  # keys that a token sees in layers with a window, where others see all

    def __post_init__(self) -> None:
        whole("vocab_size", self.vocab_size, least=1)
        whole("max_positions", self.max_positions, least=1)
        for name in ("window", "partial_window"):
            if (keys := getattr(self, name)) is not None:
                whole(name, keys, least=1)


class Runner(Protocol):
    """Holds a model and answers "next tokens for this batch"."""

    @property
    def limits(self) -> ModelLimits: ...

    def step(self, batch: ForwardBatch) -> StepOutput:
        """Write the batch's keys and values into the KV pool and return the wanted tokens."""
        ...

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter and persistent buffer, by the name the checkpoint uses."""
        ...


@runtime_checkable
class SplitRunner(Protocol):
    """A runner that may hold a part of a model, and then exchanges tensors with others in the middle of a step."""

    @property
    def is_split(self) -> bool: ...

    def prepare(self, batch: ForwardBatch) -> Callable[[], StepOutput]:
        """Do the part of `Runner.step` that may fail on one rank alone; return a function that does the rest.

        The rest exchanges tensors with other ranks, so either all ranks call it or none.
        """
        ...
