"""What fits exactly runs to its end, whatever was cached before; what is one token too long is refused at once."""

from __future__ import annotations

import itertools

import pytest

from devicekit.scheduling.errors import InvalidRequest
from devicekit.scheduling.request import FinishKind
from tests.hash_runner import expected
from tests.scheduling.conftest import MakeRig
from tests.scheduling.rig import Rig

SIZES = [*itertools.product((1, 2, 5), (1, 4), (True, False), (0, 3))]


def _fill(rig: Rig, tokens: int) -> None:
    """Leave the cache as full as it gets."""
    rig.add(range(500, 500 + max(1, tokens - 1)), 1)
    rig.run()


@pytest.mark.parametrize(("pages", "page_size", "caching", "host_pages"), SIZES)
def test_a_request_that_takes_every_page_runs_to_its_end(
    new_rig: MakeRig, pages: int, page_size: int, caching: bool, host_pages: int
) -> None:
    if host_pages and not caching:
        return
    room = pages * page_size
    rig = new_rig(
        num_pages=pages,
        page_size=page_size,
        prefix_caching=caching,
        host_pages=host_pages,
        max_batch_tokens=8,
    )
    for before, prompt in itertools.product((0, 1, room // 2, room - 1), range(1, room)):
        if before:
            _fill(rig, before)
        tokens = [(7 * prompt + 13 * before + at) % 97 for at in range(prompt)]
        # The last token that is made needs no place: nothing is computed from it.
        most = room - prompt + 1
        for wanted in (most, most + 1):
            one = rig.add(tokens, wanted)
            rig.run()
            assert rig.finishes[one].kind is FinishKind.LENGTH, (before, prompt)
            assert rig.outputs[one] == expected(tokens, most, rig.salt), (before, prompt, wanted)
        rig.check()
    with pytest.raises(InvalidRequest):
        rig.add(range(room), 1)


@pytest.mark.parametrize(("pages", "page_size", "caching", "host_pages"), SIZES)
def test_requests_run_side_by_side_where_a_share_of_what_they_may_say_has_room_too(
    new_rig: MakeRig, pages: int, page_size: int, caching: bool, host_pages: int
) -> None:
    if pages < 3 or (host_pages and not caching):
        return
    for first, spare in itertools.product(range(1, pages - 1), (0, 1)):
        rig = new_rig(num_pages=pages, page_size=page_size, prefix_caching=caching, host_pages=host_pages)
        _fill(rig, pages * page_size)
        sizes = (first * page_size, (pages - first - spare) * page_size)
        prompts = [[(31 * number + at) % 97 for at in range(size)] for number, size in enumerate(sizes)]
        ids = [rig.add(prompt, 1) for prompt in prompts]
        rig.step()
        assert (ids[1] in rig.finishes) == bool(spare), (first, spare)
        rig.run()
        assert [rig.outputs[one] for one in ids] == [expected(prompt, 1, rig.salt) for prompt in prompts]
        rig.check()
