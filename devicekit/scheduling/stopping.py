"""When an output is finished: end-of-sequence, stop tokens, stop strings.

The common case is one vector lookup for the whole batch. A request with stop strings, its own stop tokens,
``ignore_eos`` or ``min_new_tokens`` is looked at alone, and only such requests are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from devicekit.scheduling.batch import Int32, ModelLimits
from devicekit.scheduling.request import Finish, FinishKind, Request, SamplingParams


class Detokenizer(Protocol):
    """Turns token ids into text."""

    def decode(self, tokens: Sequence[int]) -> str: ...


class StopConditions:
    """The stop conditions of one model.

    Args:
        limits: whose ``eos_token_ids`` end every output that does not ignore them.
        detokenizer: needed for stop strings.
    """

    # Stop strings are searched in the text of the last tokens only. A token is at least one byte, so this many
    # tokens beyond the string's own length in bytes always cover it, wherever the tokenizer cuts.
    _MARGIN = 8

    def __init__(self, limits: ModelLimits, detokenizer: Detokenizer | None = None) -> None:
        self._model_ends = limits.eos_token_ids
        eos = np.array(sorted(limits.eos_token_ids), np.int32)
        # An array: it compares faster than a number.
        self._only_end = eos.reshape(()) if len(eos) == 1 else None
        self._ends: npt.NDArray[np.bool_] = np.zeros(limits.vocab_size, np.bool_)
        self._ends[[token for token in limits.eos_token_ids if token < limits.vocab_size]] = True
        self.detokenizer = detokenizer

    @staticmethod
    def is_special(params: SamplingParams) -> bool:
        """Whether these are conditions that the vector lookup does not cover."""
        return bool(params.stop or params.stop_token_ids or params.ignore_eos or params.min_new_tokens)

    def ended(self, tokens: Int32) -> npt.NDArray[np.int64] | None:
        """Indices of the tokens that are end-of-sequence; ``None`` if there are none."""
        # A comparison is several times cheaper than a lookup, and most models have one end token or two.
        hits = self._ends[tokens] if self._only_end is None else tokens == self._only_end
        return hits.nonzero()[0] if np.count_nonzero(hits) else None

    def end(self, token: int) -> Finish | None:
        """Whether a token is end-of-sequence."""
        return Finish(FinishKind.STOP, token) if token in self._model_ends else None

    def check(self, request: Request, output: Int32) -> Finish | None:
        """Whether the last token of ``output`` ends a request, every condition considered."""
        token = int(output[-1])
        params = request.params
        if len(output) < params.min_new_tokens:
            return None
        if token in params.stop_token_ids or (not params.ignore_eos and self._ends[token]):
            return Finish(FinishKind.STOP, token)
        if params.stop and self.detokenizer is not None:
            longest = max(len(text.encode()) for text in params.stop)
            tail = self.detokenizer.decode(output[-(longest + self._MARGIN) :].tolist())
            for text in params.stop:
                if text in tail:
                    return Finish(FinishKind.STOP, text)
        return None
