"""The page of hosts' calls says what adapters and recorded interfaces say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.host_calls import HOSTS, PAGE, Host, answers, installed, read_record, render


def host(title: str) -> Host:
    return next(one for one in HOSTS if one.title == title)


def test_the_page_is_what_record_and_adapters_make() -> None:
    assert PAGE.read_text() == render(read_record()), "run: python -m tools.host_calls"


def test_every_host_is_recorded_with_a_version() -> None:
    record = read_record()
    assert {one.package for one in HOSTS} == record.keys()
    assert all(versions for versions in record.values())


def test_what_is_here_offers_the_calls_that_are_recorded() -> None:
    found = installed(host("torch.accelerator"))
    assert found is not None
    recorded = read_record()["torch"].get(found[0])
    assert recorded is None or list(recorded) == found[1]


@pytest.mark.parametrize(
    ("title", "call", "served"),
    [
        ("SGLang", "get_available_memory", True),
        ("SGLang", "get_quantization_config", False),
        ("vLLM", "get_device_total_memory", True),  # defined below an if
        ("DeepSpeed", "memory_cached", True),  # another name for one
        ("DeepSpeed", "FloatTensor", True),  # a property made by a call
        ("DeepSpeed", "initial_seed", False),  # ours, and refuses
        ("torch.accelerator", "synchronize", True),
        ("accelerate's memory helpers", "release_memory", True),
    ],
)
def test_a_call_is_served_if_the_adapter_answers_it(title: str, call: str, served: bool) -> None:
    said = answers(host(title), [call])[call]
    assert said.served is served
    assert said.why or served


def test_another_version_is_another_column(tmp_path: Path) -> None:
    page = render({"lightning": {"2.10": ["name", "setup"], "2.9": ["name"]}})
    assert "| call | 2.9 | 2.10 | |" in page
    assert "| `setup` | - | no | has a default, made of calls that are served |" in page
