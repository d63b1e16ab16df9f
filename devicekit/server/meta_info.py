"""``meta_info``: what SGLang's answers say about a request besides its text."""

from __future__ import annotations

import time
from dataclasses import dataclass

from devicekit.engine import Generation
from devicekit.scheduling.request import Finish, FinishKind, TokenLogprob
from devicekit.server.group import SequenceSpec
from devicekit.server.logprob_format import triple, triples
from devicekit.server.serving import Serving
from devicekit.text import Vocabulary


@dataclass(frozen=True, slots=True)
class MetaInfo:
    """Builds ``meta_info`` for the requests of one call.

    Args:
        began: time.monotonic() when it came.
        with_text: put tokens' texts beside their log-probabilities.
    """

    serving: Serving
    began: float
    with_text: bool = False

    def of(self, spec: SequenceSpec, generation: Generation) -> dict[str, object]:
        """The ``meta_info`` of a request as it is now."""
        version = self.serving.loop.snapshot.weight_version
        if generation.done and generation.spans:
            version = generation.spans[-1].version
        meta: dict[str, object] = {
            "id": generation.id,
            "finish_reason": finish_reason(generation.finish, len(generation.tokens)),
            "prompt_tokens": generation.prompt_tokens,
            "completion_tokens": len(generation.tokens),
            "cached_tokens": generation.cached_tokens,
            "total_retractions": generation.retractions,
            "weight_version": version,
            "e2e_latency": time.monotonic() - self.began,
        }
        if len(generation.spans) > 1:
            meta["weight_versions"] = [
                {"version": span.version, "start": span.start, "end": span.end} for span in generation.spans
            ]
        if generation.invalid_logits:
            meta["invalid_logits"] = generation.invalid_logits
        if spec.params.logprobs is not None:
            meta.update(self._logprobs(spec, generation))
        return meta

    def _logprobs(self, spec: SequenceSpec, generation: Generation) -> dict[str, object]:
        """Of the output, and of the prompt from where it was asked for; lists are there, however empty."""
        params, vocabulary = spec.params, self.serving.engine.vocabulary if self.with_text else None
        outputs, prompt = generation.logprobs, generation.prompt_logprobs
        start = params.prompt_logprobs
        # Of the first prompt token asked for there is none: nothing was computed before it.
        scored = bool(prompt or generation.tokens) or generation.completed
        first = [int(spec.tokens[start])] if start is not None and scored else []
        meta: dict[str, object] = {
            "logprobs_of": "raw" if params.raw_logprobs else "sampled",
            "input_token_logprobs": [
                *(triple(vocabulary, token, None) for token in first),
                *(triple(vocabulary, one.token, one.logprob) for one in prompt),
            ],
            "output_token_logprobs": [triple(vocabulary, one.token, one.logprob) for one in outputs],
        }
        if params.logprobs:
            meta["input_top_logprobs"] = [*(None for _ in first), *_tops(vocabulary, prompt)]
            meta["output_top_logprobs"] = _tops(vocabulary, outputs)
        if params.logprob_ids:
            meta["input_token_ids_logprobs"] = [*(None for _ in first), *_picked(vocabulary, prompt)]
            meta["output_token_ids_logprobs"] = _picked(vocabulary, outputs)
        return meta


def _tops(vocabulary: Vocabulary | None, entries: list[TokenLogprob]) -> list[list[list[object]]]:
    return [triples(vocabulary, one.top) for one in entries]


def _picked(vocabulary: Vocabulary | None, entries: list[TokenLogprob]) -> list[list[list[object]]]:
    return [triples(vocabulary, one.picked) for one in entries]


def finish_reason(finish: Finish | None, tokens: int) -> dict[str, object] | None:
    """How a request ended, on the wire."""
    if finish is None:
        return None
    if finish.kind is FinishKind.STOP:
        return {"type": "stop", "matched": finish.matched}
    if finish.kind is FinishKind.LENGTH:
        return {"type": "length", "length": tokens}
    return {"type": "abort", "message": finish.message or "Aborted."}
