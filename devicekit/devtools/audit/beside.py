"""What to write instead of what stands beside a vendor's device module: its switches, its versions, the module."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from devicekit.devtools.audit.table import replacement_of

MODULE = (
    "torch.get_device_module(device.torch_device) for a library that wants it; else the methods of device"
)
PRESENCE = (
    "devicekit.accelerator_available(), or devicekit.select() to see which backends there are; "
    "device.supports(hook) for one ability"
)
_PRECISION = (
    "torch.set_float32_matmul_precision(...), or torch.backends.fp32_precision: torch's own, for every device"
)
_ATTENTION = "torch.nn.attention.sdpa_kernel(...), which names what every device may use"
_LIBRARY = "a switch of one vendor's library: set it beside that vendor's plugin, and waive it there"

ACTIVITIES = "torch.profiler.ProfilerActivity"
"""Its members name vendors."""

SWITCHES: Mapping[str, str] = MappingProxyType(
    {
        "torch.backends.cuda.matmul.allow_tf32": _PRECISION,
        "torch.backends.cuda.matmul.fp32_precision": _PRECISION,
        "torch.backends.cudnn.allow_tf32": _PRECISION,
        "torch.backends.cudnn.fp32_precision": _PRECISION,
        "torch.backends.cudnn.conv": _PRECISION,
        "torch.backends.cudnn.rnn": _PRECISION,
        "torch.backends.cudnn.deterministic": "torch.use_deterministic_algorithms(True), on every device",
        "torch.backends.cudnn.is_available": PRESENCE,
        "torch.backends.cuda.is_built": PRESENCE,
        "torch.backends.cuda.SDPAParams": _ATTENTION,
        "torch.backends.cuda.can_use_efficient_attention": _ATTENTION,
        "torch.backends.cuda.can_use_flash_attention": _ATTENTION,
        "torch.backends.cuda.can_use_cudnn_attention": _ATTENTION,
        "torch.backends.cuda.sdp_kernel": _ATTENTION,
        **{
            f"torch.backends.cuda.{name}": _ATTENTION
            for kind in ("flash", "mem_efficient", "math", "cudnn")
            for name in (f"enable_{kind}_sdp", f"{kind}_sdp_enabled")
        },
        "torch.backends.mps.is_available": PRESENCE,
        "torch.backends.mps.is_built": PRESENCE,
        ACTIVITIES: "torch.profiler.supported_activities(), what this torch can trace",
        "torch.backends.mps.get_name": "device.properties().name",
        "torch.backends.mps": PRESENCE,
        "torch.backends.cuda": _LIBRARY,
        "torch.backends.cudnn": _LIBRARY,
        "torch.backends.miopen": _LIBRARY,
        "torch.npu.config": _LIBRARY,
        "torch.version.cuda": "device.properties(): driver and architecture, as text; or device.name",
        "torch.version.hip": "device.properties(): driver and architecture, as text; or device.name",
        "torch.version.xpu": "device.properties(): driver and architecture, as text; or device.name",
        "torch.version.musa": "device.properties(): driver and architecture, as text; or device.name",
    }
)
"""By the longest path that a name begins with."""


def advice_of(path: str) -> tuple[str, str]:
    """What to write instead of a dotted path, and what behaves differently then; empty where nobody can say.

    ``path`` may also be the question ``hasattr(torch, 'xpu')``.
    """
    if path.startswith(("hasattr(", "getattr(")):
        return PRESENCE, ""
    if path.startswith(f"{ACTIVITIES}."):
        return "device.profiler_activity()", "None where the backend names none"
    row = replacement_of(path)
    if row is not None:
        return row.sentence, row.changes
    parts = path.split(".")
    for length in range(len(parts), 1, -1):
        if found := SWITCHES.get(".".join(parts[:length])):
            return found, ""
    if len(parts) == 2 and parts[0] == "torch":
        return MODULE, ""
    if len(parts) == 3 and parts[2].startswith("_device_count"):
        return "devicekit.accelerator_count()", ""
    return "", ""
