"""nano-vllm, moved off ``torch.cuda`` by `devicekit audit --fix`: what is left to a person, and its tokens.

It is on no package index: ``NANO_VLLM`` names a checkout, or it is installed from its repository, as `make hosts`
tries to.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import textwrap
from pathlib import Path

import pytest

from devicekit.devtools.audit import mend
from tests.hosts.conftest import Process

pytest.importorskip("libcst")
pytest.importorskip("transformers")


def _source() -> Path | None:
    """The folder of its package."""
    if (root := os.environ.get("NANO_VLLM")) is not None:
        return Path(root, "nanovllm").resolve()
    spec = importlib.util.find_spec("nanovllm")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


SOURCE = _source()
pytestmark = pytest.mark.skipif(
    SOURCE is None, reason="nano-vllm is not installed, and NANO_VLLM names no checkout"
)

HERE = "devicekit.current_device()"
# What a person writes where the fixer cannot, and what lets it run without a GPU and beside others.
BY_HAND = {
    f"{HERE}.memory_stats().peak_allocated": f"{HERE}.memory_stats().peak_allocated or 0",
    f"{HERE}.memory_stats().allocated": f"{HERE}.memory_stats().allocated or 0",
    ", pin_memory=True": "",  # torch pins for no device that is registered in Python
    "// block_bytes\n": "// block_bytes\n        config.num_kvcache_blocks = min(config.num_kvcache_blocks, 16)\n",
    "tcp://localhost:2333": "file://{store}",
}

PROGRAM = """
import json, os, sys, types
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

def gathered(cache, table, length):
    return cache[table.long()].flatten(0, 1)[:length]

def attention(q, k, v, scale):
    groups = q.shape[1] // k.shape[1]
    k, v = (one.repeat_interleave(groups, 1) for one in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    ahead = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool, device="cpu").tril(k.shape[0] - q.shape[0])
    scores = scores.masked_fill(~ahead.to(q.device), float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)

def prompts(q, k, v, *, cu_seqlens_q, cu_seqlens_k, softmax_scale, block_table, **_):
    told, seen, out = cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), []
    for one in range(len(told) - 1):
        length = seen[one + 1] - seen[one]
        paged = block_table is not None
        keys, values = (
            gathered(at, block_table[one], length) if paged else at[seen[one]:seen[one + 1]] for at in (k, v)
        )
        out.append(attention(q[told[one]:told[one + 1]], keys, values, softmax_scale))
    return torch.cat(out)

def tokens(q, k_cache, v_cache, *, cache_seqlens, block_table, softmax_scale, **_):
    out = [
        attention(q[one], *(gathered(at, block_table[one], length) for at in (k_cache, v_cache)), softmax_scale)
        for one, length in enumerate(cache_seqlens.tolist())
    ]
    return torch.stack(out)

def store(key, value, k_cache, v_cache, slots):
    k_cache.view(-1, *key.shape[1:])[slots.long()] = key
    v_cache.view(-1, *value.shape[1:])[slots.long()] = value

language = types.ModuleType("triton.language")
language.constexpr = int
sys.modules["triton"] = triton = types.ModuleType("triton")
triton.jit, triton.language = (lambda function: function), language
sys.modules["triton.language"] = language
sys.modules["flash_attn"] = flash = types.ModuleType("flash_attn")
flash.flash_attn_varlen_func, flash.flash_attn_with_kvcache = prompts, tokens

torch.manual_seed(15)
# In float64, since its norms and its sampler make a float32 of what they get and write into that: a copy, thus.
config = Qwen3Config(
    vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=1024, attention_bias=False,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    tie_word_embeddings=False, eos_token_id=319, initializer_range=0.3,
)
model = Qwen3ForCausalLM(config).to(torch.float64).eval()
model.save_pretrained(os.environ["MODEL"])
asked = [[1, 2, 3], list(range(300)), [5] * 260, list(range(300))]
expected = []
for prompt in asked:
    made = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)
    expected.append(made[0, len(prompt):].tolist())

from nanovllm.engine import llm_engine
from nanovllm.layers import attention as layer
from nanovllm.sampling_params import SamplingParams

class Tokenizer:
    eos_token_id = 319
    from_pretrained = classmethod(lambda cls, *args, **kwargs: cls())
    decode = staticmethod(str)

llm_engine.AutoTokenizer, layer.store_kvcache = Tokenizer, store
engine = llm_engine.LLMEngine(
    os.environ["MODEL"], enforce_eager=True, max_model_len=512, max_num_batched_tokens=1024, max_num_seqs=8,
    gpu_memory_utilization=1.0,
)
greedy = SamplingParams(temperature=1e-6, max_tokens=8)
answers = [engine.generate([prompt], greedy, use_tqdm=False)[0] for prompt in asked[2:]]
answers = engine.generate(asked[:2], greedy, use_tqdm=False) + answers
import devicekit
print(json.dumps([[one["token_ids"] for one in answers], expected, devicekit.current_device().torch_device.type]))
"""


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """Where a copy of the package lies that the fixer has rewritten."""
    assert SOURCE is not None
    shutil.copytree(SOURCE, tmp_path / "nanovllm", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_at_most_three_places_are_left_to_a_person(moved: Path) -> None:
    done = mend([moved])
    left = [f"{one.path}:{one.line}: {one.what}" for one in done.left]
    assert len(left) <= 3, left
    assert done.edits >= 20
    assert mend([moved]).edits == 0


def test_what_was_rewritten_gives_transformers_tokens(run: Process, moved: Path) -> None:
    mend([moved])
    runner = moved / "nanovllm" / "engine" / "model_runner.py"
    text = runner.read_text(encoding="utf-8")
    for before, after in BY_HAND.items():
        assert before in text, f"nano-vllm has changed: it has no {before!r} any more"
        text = text.replace(before, after.format(store=moved / "store"))
    runner.write_text(text, encoding="utf-8")
    printed = run(
        textwrap.dedent(PROGRAM), PYTHONPATH=str(moved), MODEL=str(moved / "model"), TORCHDYNAMO_DISABLE="1"
    )
    tokens, expected, device = json.loads(printed)
    assert tokens == expected
    assert device == run.backend
