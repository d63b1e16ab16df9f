"""Checks whether a request can ever run, and says all that is wrong with it before anything is allocated."""

from __future__ import annotations

import numpy as np

from devicekit.contract.text import shown
from devicekit.scheduling.batch import Int32, ModelLimits
from devicekit.scheduling.errors import InvalidRequest
from devicekit.scheduling.request import Request, SamplingParams


class RequestCheck:
    """Checks requests against one model and one KV pool. Safe from any thread.

    Args:
        pool_tokens: tokens that the whole pool holds.
        has_tokenizer: whether stop strings can be recognised.
        has_grammars: whether an output can be made to follow a grammar.
    """

    def __init__(
        self, limits: ModelLimits, pool_tokens: int, has_tokenizer: bool, *, has_grammars: bool = False
    ) -> None:
        self._has_grammars = has_grammars
        self._limits = limits
        self._pool_tokens = pool_tokens
        self._has_tokenizer = has_tokenizer
        self._approved: SamplingParams | None = None  # many requests in a row have the same
        self._mark = object()  # of this check, on requests that have passed it; no copy of one bears it

    def require(self, request: Request) -> None:
        """As `check`, but a request that has passed it already is not checked again.

        Raises:
            InvalidRequest: it can never run.
        """
        if request.checked is not self._mark:
            self.check(request)

    def check(self, request: Request) -> None:
        """Accept a request, or raise with everything that is wrong with it.

        Raises:
            InvalidRequest: it can never run.
        """
        if problems := self._problems(request):
            raise InvalidRequest(f"Request {shown(request.id)} cannot run: {'; '.join(problems)}.")
        request.checked = self._mark

    def _problems_of_params(self, params: SamplingParams) -> list[str]:
        if params is self._approved:
            return []
        found = params.problems(self._limits)
        if params.stop and not self._has_tokenizer:
            found.append("it has stop strings, and this engine has no tokenizer")
        if params.grammar is not None and not self._has_grammars:
            found.append("its output is to follow a grammar, and this engine has no tokenizer")
        if not found:
            self._approved = params
        return found

    @staticmethod
    def _largest(prompt: Int32) -> int:
        """The largest token id, read as unsigned: a negative one counts as huge."""
        tokens = prompt.view(np.uint32)
        return tokens.item(tokens.argmax())

    def _problems(self, request: Request) -> list[str]:
        limits, size = self._limits, len(request.prompt)
        found = self._problems_of_params(request.params)
        if size == 0:
            found.append("the prompt is empty")
        elif self._largest(request.prompt) >= limits.vocab_size:
            found.append(f"the prompt has tokens outside the vocabulary of {limits.vocab_size}")
        if size >= limits.max_positions:
            found.append(
                f"the prompt has {size} tokens, and the model takes fewer than {limits.max_positions}"
            )
        if size >= self._pool_tokens:
            found.append(f"the prompt has {size} tokens, and the KV pool holds {self._pool_tokens}")
        start = request.params.prompt_logprobs
        if start is not None and start >= size:
            found.append(f"log-probabilities are asked for from prompt token {start} on, and it has {size}")
        if request.timeout is not None and not request.timeout > 0:
            found.append(f"timeout must be a positive number of seconds, not {request.timeout}")
        return found
