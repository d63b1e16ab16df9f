"""Which backend was chosen and why, and what its device says of itself."""

from __future__ import annotations

from devicekit.contract.hooks import HOOKS
from devicekit.device import available_memory
from devicekit.devtools.certify.ground import Ground
from devicekit.devtools.certify.record import Findings
from devicekit.registry.selection import select


def run(ground: Ground, findings: Findings) -> None:
    """Ask everything once, and check that asking changed nothing."""
    device = ground.device
    backend, properties = device.backend, device.properties()
    findings.note(f"backend: {backend.label}")
    findings.note(f"device: {properties.name or device.torch_device}")
    findings.note(f"driver: {properties.driver or 'unknown'}")
    findings.note(f"architecture: {properties.architecture or 'unknown'}")
    findings.note(
        select(f"{device.name}:{device.index}" if backend.manifest.indexed else device.name).explain()
    )
    before = device.memory_stats()
    info = device.memory_info()
    findings.number("driver: free", info.free, "B")
    findings.number("driver: total", info.total, "B")
    findings.number("available to a new allocation", available_memory(device).bytes, "B")
    findings.number("compute units", properties.compute_units, "")
    findings.number("hooks present", len(backend.implemented), f"of {len(HOOKS)}")
    findings.note(f"hooks missing: {', '.join(sorted(HOOKS.keys() - backend.implemented)) or 'none'}")
    findings.note(f"capabilities: {', '.join(sorted(backend.capabilities)) or 'none'}")
    for name, hooks in backend.withdrawn.items():
        findings.note(f"withdrawn: {name} (for want of {', '.join(hooks)})")
    after = device.memory_stats()
    # Asking the driver makes a context on most vendors, after which nothing reserved is 0 and not unknown.
    same = (before.reserved or 0) == (after.reserved or 0)
    findings.check("asking all this allocated nothing", same)
