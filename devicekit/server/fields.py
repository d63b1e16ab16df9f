"""What clients of other engines may send that changes the answer and that this server cannot honour.

To let such a field pass would answer something else than was asked, so it is refused by its name, wherever it
stands. A value that asks for nothing (null, false, empty, and what `NEUTRAL` lists) is let pass. Any other unknown
field is let pass as well, and named in a header of the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from pydantic import BaseModel

from devicekit.server.arguments import Arguments

REFUSED: frozenset[str] = frozenset(
    # Other inputs than text and tokens.
    {"input_embeds", "prompt_embeds", "image_data", "video_data", "audio_data", "audio", "documents"}
    | {"modalities", "mm_processor_kwargs", "media_io_kwargs", "web_search_options", "prediction"}
    | {"positional_embed_overrides", "multi_item_delimiter_indices"}
    # Other ways to draw or to stop.
    | {"stop_regex", "bad_words", "allowed_token_ids", "logits_processors", "custom_logit_processor"}
    | {"custom_params", "use_beam_search", "beam_width", "num_beams", "length_penalty", "early_stopping"}
    | {"suffix", "typical_p", "top_a", "tfs", "epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size"}
    | {"mirostat", "mirostat_mode", "dry_multiplier", "xtc_probability", "smoothing_factor", "dynatemp_range"}
    | {"min_tokens_to_keep", "truncate_prompt_tokens", "thinking_token_budget", "vllm_xargs"}
    | {"max_thinking_tokens", "require_reasoning", "repetition_detection", "watermark", "watermarking"}
    # Other constraints on the output.
    | {"structural_tag", "guided_whitespace_pattern", "guided_decoding_backend", "whitespace_pattern"}
    | {"disable_any_whitespace", "disable_additional_properties", "ebnf_full_assistant"}
    # Other answers.
    | {"return_hidden_states", "return_routed_experts", "return_pooled_hidden_states", "prompt_logprobs"}
    | {"return_tokens_as_token_ids", "return_attention", "functions", "function_call", "verbosity"}
    | {"return_sampling_mask", "sampling_logprobs_mode", "logprob_token_ids", "return_flat_raw_top_logprobs"}
    | {"return_flat_raw_output_top_logprobs", "return_indexer_topk", "return_bytes", "return_entropy"}
    | {"return_prompt_token_ids", "return_prompt_text", "return_cached_tokens_details"}
    | {
        "return_spec_tokens_details",
        "return_input_ids_in_sglext",
        "return_output_ids_in_sglext",
        "background",
    }
    # Other models and states, and other engines' ways to share them.
    | {"lora_path", "lora_name", "lora_id", "lora_request", "session_params", "session_id"}
    | {"previous_response_id", "bootstrap_host", "bootstrap_port", "bootstrap_room", "bootstrap_pair_key"}
    | {"kv_transfer_params", "ec_transfer_params", "data_parallel_rank", "token_indices_to_pool"}
    | {"chat_template", "template", "thinking", "task"}
    # Other things to be done than an update of weights, or a check of them, does here.
    | {"keep_pause", "manifest", "skip_tensor_list"}
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
        "sampling_logprobs_mode": ("selected",),
        "thinking": ({"type": "disabled"},),
        # Of those that another endpoint knows.
        "n": (1,),
        "best_of": (1,),
        "top_p": (1,),
        "top_k": (-1, 0),
        "min_p": (0,),
        "min_tokens": (0,),
        "min_new_tokens": (0,),
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "repetition_penalty": (1,),
        "top_logprobs": (0,),
        "top_logprobs_num": (0,),
        "logprob_start_len": (-1,),
        "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True,),
        "add_special_tokens": (True,),
        "add_generation_prompt": (True,),
        "parallel_tool_calls": (True,),
        "tool_choice": ("none", "auto"),
        "logprobs_mode": ("sampled",),
    }
)
_HARMLESS = frozenset({"model", "rid", "request_id", "priority", "stream_options", "reasoning_effort"})
_HOLDERS = re.compile(r"(sampling_params\.([0-9]+\.)?)?[a-z_]+")  # where such fields stand


def refused(fields: Iterable[tuple[str, str, object]], elsewhere: Mapping[str, str]) -> list[str]:
    """What to say of each unknown field that would change the answer.

    Args:
        fields: as `unknown_fields` gives them.
        elsewhere: fields that mean something in other places, and which (`meanings`).
    """
    found = []
    for place, name, value in fields:
        foreign = name in elsewhere and _HOLDERS.fullmatch(place)
        if (name in REFUSED or foreign) and asks_for_something(name, value):
            found.append(f"{place} (a field of {elsewhere[name]})" if foreign else place)
    return found


def meanings(models: Mapping[str, type[BaseModel]]) -> dict[str, str]:
    """Fields that change an answer, and what they are fields of.

    A client that sends one of them where it has no meaning took one endpoint's form for another's.
    """
    found: dict[str, str] = {}
    for owner, model in models.items():
        for name, field in model.model_fields.items():
            if name not in _HARMLESS:
                found.setdefault(field.alias or name, owner)
    return found


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


def without_ground(arguments: Arguments) -> Iterator[str]:
    """What to say of each field that was sent and means nothing without another one."""
    for name, ground in arguments.needs.items():
        value, given = getattr(arguments, name), getattr(arguments, ground)
        unsaid = name not in arguments.model_fields_set or value == type(arguments).model_fields[name].default
        granted = any(given) if isinstance(given, list) else given not in (None, False)
        if not unsaid and not granted and asks_for_something(name, value):
            yield f"{name}: it means nothing without {ground}"


def asks_for_something(name: str, value: object) -> bool:
    """Whether a value of a refused field would change the answer."""
    return bool(value or (value == 0 and value is not False)) and value not in NEUTRAL.get(name, ())
