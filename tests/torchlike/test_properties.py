"""Vendors' properties objects differ in every field; the record does not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from devicekit.contract import DeviceProperties
from devicekit.torchlike.properties import device_properties, uuid_text

PLAIN = "1f7c3a52-0c5b-4b0e-9a0e-2b8f6f1f0a11"


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (PLAIN, PLAIN),
        (f"GPU-{PLAIN.upper()}", PLAIN),
        (PLAIN.replace("-", ""), PLAIN),
        (bytes.fromhex(PLAIN.replace("-", "")), PLAIN),
        (list(bytes.fromhex(PLAIN.replace("-", ""))), PLAIN),
        (b"\x01\x02", "0102"),
        ("board-7", "board-7"),
        ("", None),
        (b"", None),
        (None, None),
    ],
)
def test_a_uuid_is_plain_text_in_whatever_form_it_came(found: object, text: str | None) -> None:
    assert uuid_text(found) == text


def test_fields_a_vendor_does_not_have_are_unknown() -> None:
    found = device_properties(SimpleNamespace(name="A"), architecture=None, compute_units="units")
    assert found == DeviceProperties(name="A")


def test_no_shared_memory_is_not_the_same_as_unknown() -> None:
    found = device_properties(SimpleNamespace(is_integrated=0), architecture="9.0", compute_units="units")
    assert found == DeviceProperties(architecture="9.0", unified_memory=False)
