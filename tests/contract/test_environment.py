from __future__ import annotations

import pytest

from devicekit.contract.environment import VARIABLES, check_environment
from devicekit.contract.errors import ConfigurationError


def test_the_variables_that_exist_and_those_of_others_are_let_through():
    check_environment(dict.fromkeys(VARIABLES, "x") | {"PATH": "/", "DEVICEKIT_CONFORMANCE_BACKEND": "npu"})


def test_a_misspelt_variable_is_answered_with_the_nearest():
    with pytest.raises(ConfigurationError, match=r"_BACKENT does not exist\. Did you mean DEVICEKIT_BACKEND"):
        check_environment({"DEVICEKIT_BACKENT": "npu"})


def test_a_variable_like_no_other_is_answered_with_the_list():
    with pytest.raises(ConfigurationError) as caught:
        check_environment({"DEVICEKIT_ZZZ_ZZZ_ZZZ_ZZZ": "1"})
    assert all(name in str(caught.value) for name in VARIABLES)
