"""When an output is finished: end-of-sequence, stop tokens, stop strings.

The common case is one vector lookup for the whole batch. A request with stop strings, its own stop tokens,
``ignore_eos`` or ``min_new_tokens`` is looked at alone, and only such requests are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from devicekit.scheduling.batch import Int32, ModelLimits
from devicekit.scheduling.request import Finish, FinishKind, Request, SamplingParams
from devicekit.text import RequestText, Vocabulary, vocabulary_of
from devicekit.text.vocabulary import Decodes


class StopConditions:
    """The stop conditions of one model.

    Args:
        limits: whose ``eos_token_ids`` end every output that does not ignore them.
        detokenizer: a `Vocabulary`, or whatever decodes; needed for stop strings.
    """

    def __init__(self, limits: ModelLimits, detokenizer: Vocabulary | Decodes | None = None) -> None:
        self._model_ends = limits.eos_token_ids
        eos = np.array(sorted(limits.eos_token_ids), np.int32)
        # An array: it compares faster than a number.
        self._only_end = eos.reshape(()) if len(eos) == 1 else None
        self._ends: npt.NDArray[np.bool_] = np.zeros(limits.vocab_size, np.bool_)
        self._ends[[token for token in limits.eos_token_ids if token < limits.vocab_size]] = True
        self.vocabulary = None if detokenizer is None else vocabulary_of(detokenizer)

    def begin(self, request: Request) -> None:
        """Begin the text of a request in which stop strings are to be found."""
        if request.params.stop and self.vocabulary is not None:
            request.text = RequestText(self.vocabulary, request.prompt.tolist(), request.params.text_options)

    @staticmethod
    def is_special(params: SamplingParams) -> bool:
        """Whether these are conditions that the vector lookup does not cover."""
        return bool(
            params.stop
            or params.stop_token_ids
            or params.ignore_eos
            or params.min_new_tokens
            or params.grammar is not None
        )

    def ended(self, tokens: Int32) -> npt.NDArray[np.int64] | None:
        """Indices of the tokens that are end-of-sequence; ``None`` if there are none."""
        # A comparison is several times cheaper than a lookup, and most models have one end token or two.
        hits = self._ends[tokens] if self._only_end is None else tokens == self._only_end
        return hits.nonzero()[0] if np.count_nonzero(hits) else None

    def end(self, token: int) -> Finish | None:
        """Whether a token is end-of-sequence."""
        return Finish(FinishKind.STOP, token) if token in self._model_ends else None

    def check(self, request: Request, token: int) -> Finish | None:
        """Whether its newest token ends a request, every condition considered. Ask once per token.

        Its text, if it has one, has all tokens before that.
        """
        params, text = request.params, request.text
        ends = token in params.stop_token_ids or (token in self._model_ends and not params.ignore_eos)
        if ends and request.num_output >= params.min_new_tokens:
            return Finish(FinishKind.STOP, self._end_text(text, token, params) or token)
        if text is not None and (stop := text.push(token)) is not None:
            return Finish(FinishKind.STOP, stop)
        return None

    @staticmethod
    def _end_text(text: RequestText | None, token: int, params: SamplingParams) -> str | None:
        """End the text with a token that ends the output; the stop string that is found then."""
        if text is None:
            return None
        if params.keep_stop:
            text.push(token)
        return text.end(hide_last=not params.keep_stop)
