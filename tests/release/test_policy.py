"""A policy says what it does in one line of text, and a line that says nothing sensible is refused."""

from __future__ import annotations

import pickle

import pytest

from devicekit.release import (
    InvalidReleaseSetting,
    ReleasePolicy,
    always,
    interval,
    never,
    on_request,
    parse_policy,
    when_reclaimable,
)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("always", always()),
        (" never ", never()),
        ("on_request:yes", on_request(default=True)),
        ("on_request: no", on_request(default=False)),
        ("interval:30", interval(30)),
        ("interval:0.5", interval(0.5)),
        ("when_reclaimable:4096", when_reclaimable(4096)),
        ("when_reclaimable:1GiB", when_reclaimable(1 << 30)),
        ("when_reclaimable:1.5 mib", when_reclaimable(3 << 19)),
        ("always, every:5", always().at_most_every(5)),
    ],
)
def test_a_policy_is_read_as_it_is_written(text: str, policy: ReleasePolicy) -> None:
    assert parse_policy(text) == policy
    assert parse_policy(str(policy)) == policy


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no release policy"),
        ("sometimes", "no release policy"),
        ("always:yes", "takes no argument"),
        ("on_request", "on_request:yes"),
        ("on_request:maybe", "on_request:yes"),
        ("interval", "not a number"),
        ("interval:soon", "not a number"),
        ("interval:0", "above 0"),
        ("interval:-1", "above 0"),
        ("interval:nan", "finite"),
        ("interval:inf", "finite"),
        ("when_reclaimable:much", "not a size"),
        ("when_reclaimable:1GB", "not a size"),
        ("when_reclaimable:0", "at least 1"),
        ("always, every:0", "above 0"),
        ("when_reclaimable:" + "9" * 5000, "at most"),
        ("always, after:5", "no option"),
    ],
)
def test_a_line_that_is_no_policy_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(InvalidReleaseSetting, match=complaint):
        parse_policy(text)


def test_the_refusal_says_where_it_stands_and_survives_pickling() -> None:
    error = InvalidReleaseSetting("Write yes.", source="DEVICEKIT_RELEASE_FLUSH", value="maybe")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "DEVICEKIT_RELEASE_FLUSH='maybe': Write yes."
    assert (again.source, again.value) == ("DEVICEKIT_RELEASE_FLUSH", "maybe")
