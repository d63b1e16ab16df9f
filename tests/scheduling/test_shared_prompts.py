"""What requests share is computed by one of them, whenever they come, and nobody waits for it without end."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devicekit.device import get_device
from devicekit.scheduling.messages import Abort, AbortReply
from tests.hash_runner import expected
from tests.scheduling.rig import Rig, make_rig

_PAGE = 4
_STEMS: tuple[list[int], ...] = ([], [*range(1, 5)], [*range(1, 9)], [*range(1, 31)], [9] * 40, [1, 2, 9, 9])
_PROMPTS = st.lists(
    st.tuples(st.sampled_from(_STEMS), st.lists(st.integers(1, 3), min_size=1, max_size=12)),
    min_size=2,
    max_size=9,
)


def computed_pages(rig: Rig, prompts: dict[str, list[int]]) -> Counter[tuple[int, ...]]:
    """How often each page was computed, but for those with a prompt's last token, which has to be."""
    return Counter(
        tuple(prompt[:end])
        for identity, prompt in prompts.items()
        for end in range(rig.last[identity].cached_tokens + _PAGE, len(prompt), _PAGE)
    )


@given(_PROMPTS, st.sampled_from([6, 16, 64, 400]), st.lists(st.integers(0, 3), min_size=9, max_size=9))
def test_no_page_of_a_prompt_is_computed_twice(
    parts: list[tuple[list[int], list[int]]], budget: int, steps: list[int]
) -> None:
    rig = make_rig(get_device("cpu"), num_pages=300, max_running=16, max_batch_tokens=budget)
    prompts: dict[str, list[int]] = {}
    for (stem, own), between in zip(parts, steps, strict=False):
        prompts[rig.add([*stem, *own], 3)] = [*stem, *own]
        rig.step(between)
    rig.run()
    for identity, prompt in prompts.items():
        assert rig.outputs[identity] == expected(prompt, 3, rig.salt)
    twice = {page: count for page, count in computed_pages(rig, prompts).items() if count > 1}
    assert not twice
    rig.check()


@pytest.mark.parametrize("caching", [True, False])
def test_those_who_share_a_prompt_wait_for_the_first_where_prefixes_are_cached(caching: bool) -> None:
    rig = make_rig(get_device("cpu"), prefix_caching=caching, max_batch_tokens=16)
    ids = [rig.add(range(1, 25)) for _ in range(3)]  # two passes
    alone = rig.add([7, 8, 9])
    rig.run()
    assert [rig.last[one].cached_tokens for one in ids] == ([0, 20, 20] if caching else [0, 0, 0])
    assert len({tuple(rig.outputs[one]) for one in ids}) == 1
    assert rig.outputs[alone]


def test_others_start_in_the_place_of_those_who_wait() -> None:
    rig = make_rig(get_device("cpu"), max_batch_tokens=64)
    first, again = rig.add(range(1, 25)), rig.add(range(1, 25))
    other = rig.add(range(50, 60))
    rig.step()
    assert [one.id for one in rig.scheduler.state.running.requests] == [first, other]
    assert [one.id for one in rig.scheduler.state.waiting] == [again]
    rig.step()
    assert again in [one.id for one in rig.scheduler.state.running.requests]
    rig.run()
    assert rig.last[again].cached_tokens == 20


@pytest.mark.parametrize("namespaces", [(None, "tenant"), ("one", "other")])
def test_nobody_waits_for_whom_nothing_is_shared_with(namespaces: tuple[str | None, str]) -> None:
    rig = make_rig(get_device("cpu"), max_batch_tokens=64)
    for namespace in namespaces:
        rig.add(range(1, 25), namespace=namespace)
    rig.step()
    assert len(rig.scheduler.state.running.requests) == 2


def test_when_the_first_is_aborted_another_computes_it() -> None:
    rig = make_rig(get_device("cpu"), max_batch_tokens=8)
    first, second, third = (rig.add(range(1, 25)) for _ in range(3))
    rig.step()
    assert rig.do(Abort("a", request_id=first), AbortReply).aborted == 1
    rig.run()
    assert rig.outputs[second] == rig.outputs[third] == expected(range(1, 25), 8, rig.salt)
    assert (rig.last[second].cached_tokens, rig.last[third].cached_tokens) == (0, 20)


def test_one_that_waits_is_not_passed_for_ever() -> None:
    """Each of those that come later begins with what it needs, and is done before it starts."""
    rig = make_rig(get_device("cpu"), num_pages=600, max_batch_tokens=32, max_running=4)
    rig.add(range(1, 101), 1)
    waits = rig.add(range(1, 101), 2)
    for number in range(400):
        rig.add([*range(200, 208), 300 + number], 1)
        rig.step()
        if waits in rig.finishes:
            break
    assert number < 20
