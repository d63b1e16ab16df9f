"""What clients of other engines may send that changes the answer and that this server cannot honour.

To let such a field pass would answer something else than was asked, so it is refused by its name, wherever it
stands. A value that asks for nothing (null, false, empty, and what `NEUTRAL` lists) is let pass. Any other unknown
field is let pass as well, and named in a header of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from pydantic import BaseModel

REFUSED: frozenset[str] = frozenset(
    # Other inputs than text and tokens.
    {"input_embeds", "prompt_embeds", "image_data", "video_data", "audio_data", "audio", "documents"}
    | {"modalities", "mm_processor_kwargs", "media_io_kwargs", "web_search_options", "prediction"}
    # Other ways to draw or to stop.
    | {"stop_regex", "bad_words", "allowed_token_ids", "logits_processors", "custom_logit_processor"}
    | {"custom_params", "use_beam_search", "beam_width", "num_beams", "length_penalty", "early_stopping"}
    | {"suffix", "typical_p", "top_a", "tfs", "epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size"}
    | {"mirostat", "mirostat_mode", "dry_multiplier", "xtc_probability", "smoothing_factor", "dynatemp_range"}
    | {"min_tokens_to_keep", "truncate_prompt_tokens", "thinking_token_budget", "vllm_xargs"}
    # Other constraints on the output.
    | {"structural_tag", "guided_whitespace_pattern", "guided_decoding_backend"}
    # Other answers.
    | {"return_hidden_states", "return_routed_experts", "return_pooled_hidden_states", "prompt_logprobs"}
    | {"return_tokens_as_token_ids", "return_attention", "functions", "function_call", "verbosity"}
    # Other models and states, and other engines' ways to share them.
    | {"lora_path", "lora_name", "lora_request", "session_params", "session_id", "previous_response_id"}
    | {"bootstrap_host", "bootstrap_port", "bootstrap_room", "kv_transfer_params", "data_parallel_rank"}
    | {"chat_template", "template"}
)
NEUTRAL: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "length_penalty": (1,),
        "typical_p": (1,),
        "tfs": (1,),
        "top_a": (0,),
        "epsilon_cutoff": (0,),
        "eta_cutoff": (0,),
        "no_repeat_ngram_size": (0,),
        "mirostat": (0,),
        "mirostat_mode": (0,),
        "dry_multiplier": (0,),
        "xtc_probability": (0,),
        "smoothing_factor": (0,),
        "dynatemp_range": (0,),
        "beam_width": (1,),
        "num_beams": (1,),
        "modalities": (["text"],),
        "function_call": ("none",),
        "guided_decoding_backend": ("auto",),
        "verbosity": ("medium",),
    }
)


def unknown_fields(arguments: BaseModel, place: str = "") -> Iterator[tuple[str, str, object]]:
    """What was sent and no field takes: its place, its name and its value, nested ones too."""
    if not getattr(type(arguments), "takes_anything", False):
        for name, value in (arguments.__pydantic_extra__ or {}).items():
            yield f"{place}{name}", name, value
    for name in type(arguments).model_fields:
        value = getattr(arguments, name)
        if isinstance(value, BaseModel):
            yield from unknown_fields(value, f"{place}{name}.")
        elif isinstance(value, list):
            seen: set[int] = set()  # of objects that say the same there is one
            for at, one in enumerate(value):
                if not isinstance(one, BaseModel):
                    break
                if id(one) in seen:
                    continue
                seen.add(id(one))
                yield from unknown_fields(one, f"{place}{name}.{at}.")


def asks_for_something(name: str, value: object) -> bool:
    """Whether a value of a refused field would change the answer."""
    return bool(value or (value == 0 and value is not False)) and value not in NEUTRAL.get(name, ())
