"""Reads what a device is from a vendor's properties object, in which each vendor has other fields."""

from __future__ import annotations

import uuid

from devicekit.contract import DeviceProperties


def device_properties(
    found: object,
    *,
    architecture: str | None,
    compute_units: str,
    unified: str = "is_integrated",
    driver: str | None = None,
) -> DeviceProperties:
    """The record for a vendor's properties object.

    Args:
        found: what the vendor's ``get_device_properties`` returned.
        architecture: the vendor's word for the architecture, or ``None``.
        compute_units: the field that counts them.
        unified: the field that says whether memory is shared with the host.
        driver: the driver's version, where the vendor tells.
    """
    integrated = getattr(found, unified, None)
    return DeviceProperties(
        name=getattr(found, "name", None),
        total_memory=getattr(found, "total_memory", None),
        uuid=uuid_text(getattr(found, "uuid", None)),
        architecture=architecture,
        compute_units=getattr(found, compute_units, None),
        unified_memory=None if integrated is None else bool(integrated),
        driver=driver,
    )


def uuid_text(found: object) -> str | None:
    """A device's uuid as plain lower-case text; ``None`` if there is none.

    Vendors give text with and without a ``GPU-`` prefix, an object that prints as such, or sixteen bytes.
    """
    if found is None:
        return None
    if isinstance(found, (bytes, bytearray, list, tuple)):
        packed = bytes(found)
        return str(uuid.UUID(bytes=packed)) if len(packed) == 16 else packed.hex() or None
    text = str(found).removeprefix("GPU-")
    try:
        return str(uuid.UUID(text))
    except ValueError:  # a vendor's own format is still an identity
        return text or None
