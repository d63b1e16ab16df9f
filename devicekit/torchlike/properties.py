"""Reads what a device is from a vendor's properties object, in which each vendor has other fields."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from devicekit.contract import DeviceProperties
from devicekit.torchlike.numbers import whole

# Management libraries write the domain with eight digits, or leave it out.
_PCI = re.compile(r"(?:([0-9a-fA-F]{1,8}):)?([0-9a-fA-F]{1,2}):([0-9a-fA-F]{1,2})(?:\.([0-7]))?")


def device_properties(
    found: object,
    *,
    architecture: str | None,
    compute_units: str,
    unified: str = "is_integrated",
    driver: str | None = None,
    capability: tuple[int, int] | None = None,
    pci: str | None = None,
    physical_index: int | None = None,
) -> DeviceProperties:
    """The record for a vendor's properties object.

    Args:
        found: what the vendor's ``get_device_properties`` returned.
        architecture: the vendor's word for the architecture, or ``None``.
        compute_units: the field that counts them.
        unified: the field that says whether memory is shared with the host.
        driver: the driver's version, where the vendor tells.
        capability: the comparable version of the architecture, or ``None``.
        pci: the PCI address, in any vendor's form, where the object does not carry it.
        physical_index: the device's index among all of the machine.
    """
    integrated = getattr(found, unified, None)
    address = pci_address(pci) if pci else _own_pci_address(found)
    return DeviceProperties(
        name=text(getattr(found, "name", None)),
        total_memory=whole(getattr(found, "total_memory", None)),
        uuid=uuid_text(getattr(found, "uuid", None)),
        architecture=architecture,
        compute_units=whole(getattr(found, compute_units, None)),
        unified_memory=None if integrated is None else bool(integrated),
        driver=driver,
        capability=capability,
        pci_address=address,
        numa_node=None if address is None else numa_node(address),
        physical_index=whole(physical_index),
    )


def text(value: object) -> str | None:
    """What a vendor calls something; ``None`` if it says nothing."""
    return None if value is None else str(value)


def pci_address(written: str) -> str | None:
    """A PCI address as the system writes it, ``0000:3b:00.0``; ``None`` if ``written`` is none."""
    found = _PCI.fullmatch(written.strip())
    if found is None:
        return None
    domain, bus, device, function = (int(part or "0", 16) for part in found.groups())
    return f"{domain:04x}:{bus:02x}:{device:02x}.{function:x}"


def numa_node(address: str, devices: Path = Path("/sys/bus/pci/devices")) -> int | None:
    """The host's memory node nearest to a PCI device; ``None`` where the system does not say, or has but one."""
    try:
        node = int((devices / address / "numa_node").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None  # -1 is the system's word for "not known"


def _own_pci_address(found: object) -> str | None:
    parts = [getattr(found, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    if not all(type(part) is int for part in parts):
        return None
    domain, bus, device = (int(str(part)) for part in parts)
    return f"{domain:04x}:{bus:02x}:{device:02x}.0"


def uuid_text(found: object) -> str | None:
    """A device's uuid as plain lower-case text; ``None`` if there is none.

    Vendors give text with and without a ``GPU-`` prefix, an object that prints as such, or sixteen bytes.
    """
    if found is None:
        return None
    if isinstance(found, (bytes, bytearray, list, tuple)):
        packed = bytes(found)
        return str(uuid.UUID(bytes=packed)) if len(packed) == 16 else packed.hex() or None
    plain = str(found).removeprefix("GPU-")
    try:
        return str(uuid.UUID(plain))
    except ValueError:  # a vendor's own format is still an identity
        return plain or None
