"""SGLang's and vLLM's platforms through their own discovery, and that installing them activates nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import devicekit_sglang
import devicekit_vllm
from tests.hosts.conftest import Process, installed

SGLANG = """
import torch, devicekit
from sglang.srt.platforms import current_platform as platform
device = devicekit.get_device()
assert type(platform).__name__ == "DevicekitPlatform"
assert platform.device_type == device.torch_device.type
assert platform.get_available_memory()[1] == device.memory_info().total
assert platform.is_pin_memory_available() == device.supports("pin_memory")
platform.synchronize()
platform.empty_cache()
platform.set_device(device.torch_device)
print(platform.is_cpu(), platform.is_out_of_tree())
"""

VLLM = """
import torch, devicekit
from vllm.platforms import current_platform as platform
device = devicekit.get_device()
assert type(platform).__name__ == "DevicekitPlatform"
assert platform.get_device_name() == device.properties().name
platform.synchronize()
platform.empty_cache()
print(platform.is_cpu(), platform.is_out_of_tree())
"""


# vLLM starts processes that import the main module.
SERVED = """
def main():
    import torch, transformers
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform
    assert type(current_platform).__name__ == "DevicekitPlatform"
    prompts = [[5, 6, 7, 8, 9, 10], [50, 51, 52]]
    engine = LLM(
        model=FOLDER, skip_tokenizer_init=True, dtype="float32", max_model_len=128, max_num_seqs=4,
        enforce_eager=True, gpu_memory_utilization=0.3,
    )
    asked = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, detokenize=False)
    answers = engine.generate([{"prompt_token_ids": one} for one in prompts], asked)
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    for prompt, answer in zip(prompts, answers):
        ids = torch.tensor([prompt])
        wanted = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, min_new_tokens=16, do_sample=False
        )
        assert list(answer.outputs[0].token_ids) == wanted[0, len(prompt):].tolist()
    print("equal")

if __name__ == "__main__":
    main()
"""


@installed("vllm")
def test_vllm_serves_a_model_with_the_platform(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=384, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64, initializer_range=0.3, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    script = tmp_path / "serve.py"
    script.write_text(SERVED.replace("FOLDER", repr(str(tmp_path / "model"))))
    said = Process("cpu").file(
        script, VLLM_PLUGINS="devicekit", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1"
    )
    assert "equal" in said


@installed("sglang")
def test_sglang_resolves_and_uses_the_platform(run: Process) -> None:
    said = run(SGLANG, SGLANG_PLATFORM="devicekit")
    assert said == ("True False" if run.backend == "cpu" else "False True")


@installed("vllm")
def test_vllm_resolves_and_uses_the_platform(run: Process) -> None:
    said = run(VLLM, VLLM_PLUGINS="devicekit")
    assert said == ("True False" if run.backend == "cpu" else "False True")


@pytest.mark.parametrize(
    ("variable", "plugin"), [("SGLANG_PLATFORM", devicekit_sglang), ("VLLM_PLUGINS", devicekit_vllm)]
)
def test_installing_activates_nothing(monkeypatch: pytest.MonkeyPatch, variable: str, plugin) -> None:
    for value in (None, "", "other", "devicekit_too"):
        monkeypatch.delenv(variable, raising=False)
        if value is not None:
            monkeypatch.setenv(variable, value)
        assert plugin.activate() is None
    monkeypatch.setenv(variable, "devicekit")
    assert plugin.activate().endswith(".DevicekitPlatform")
