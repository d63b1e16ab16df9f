"""A setting of torch's allocators is changed to what was said, or refused: torch itself reads numbers half."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from devicekit.torchlike import allocator

pytestmark = pytest.mark.skipif(
    not (allocator.readable() and hasattr(torch._C, "_accelerator_setAllocatorSettings")),
    reason="this torch shows no settings",
)
_HALF_READ = (
    "-{}",
    "+{}",
    "{}abc",
    "{}e3",
    "0x{}",
    "{} ",
    " {}",
    "{}_0",
    "",
    "\u0665{}",
    "{}" * 12,
    "[-{}]",
    "[{}",
)


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    before = torch._C._accelerator_getAllocatorSettings()
    yield
    torch._C._accelerator_setAllocatorSettings(before)


@pytest.mark.parametrize(
    "name", ["max_split_size_mb", "garbage_collection_threshold", "roundup_power2_divisions"]
)
def test_a_value_that_is_read_only_in_part_is_refused_and_changes_nothing(name: str) -> None:
    module = ModuleType("torch.acme")
    allocator.change(module, "max_split_size_mb", "64")
    before = allocator.settings()
    for form in _HALF_READ:
        with pytest.raises(ValueError):
            allocator.change(module, name, form.replace("{}", "128"))
        assert allocator.settings() == before, form


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_split_size_mb", "128"),
        ("garbage_collection_threshold", "0.8"),
        ("expandable_segments", "True"),
        ("roundup_power2_divisions", "[256:1,512:2,>:4]"),
    ],
)
def test_a_value_of_each_form_is_taken_and_shown(name: str, value: str) -> None:
    allocator.change(ModuleType("torch.acme"), name, value)
    assert (name, value) in [(one.name, one.value) for one in allocator.settings()]
