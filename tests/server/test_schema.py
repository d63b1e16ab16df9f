"""The API as it describes itself: whatever its schema allows, and what it forbids, is answered and never a fault.

`SCHEMA_EXAMPLES` (environment) sets how many requests each operation gets of either kind.
"""

from __future__ import annotations

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode

from devicekit.server.app import ENDPOINTS
from devicekit.server.openapi import describe
from tests.server.conftest import Models, Server

_OPERATIONS = [one.ok() for one in schemathesis.openapi.from_dict(describe(ENDPOINTS)).get_all_operations()]
_SETTINGS = settings(
    max_examples=int(os.environ.get("SCHEMA_EXAMPLES", "3")),
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
# What is sound and yet would take longer than any test.
_SHORT = {"timeout": 0.05, "max_tokens": 2, "max_completion_tokens": 2}


def _ways(operation: schemathesis.APIOperation) -> list[GenerationMode]:
    """What takes no arguments cannot be called wrongly, nor what takes any text as a part of its path."""
    takes_some = operation.body or any(one.location != "path" for one in operation.iter_parameters())
    return [*GenerationMode] if takes_some else [GenerationMode.POSITIVE]


@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        pytest.param(operation, mode, id=f"{operation.label} {mode.value}")
        for operation in _OPERATIONS
        for mode in _ways(operation)
    ],
)
def test_no_request_is_a_fault_of_the_server(
    shared: Server, models: Models, operation: schemathesis.APIOperation, mode: GenerationMode
) -> None:
    @_SETTINGS
    @given(operation.as_strategy(generation_mode=mode))
    def check(case: Case) -> None:
        _shorten(case)
        answer = case.call(base_url=shared.url, timeout=30)
        assert answer.status_code < 500 or answer.status_code == 501, (case.as_curl_command(), answer.text)
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"], case.as_curl_command()
        shared.restore(models)

    check()
    assert shared.get("/health_generate").status_code == 200


def test_every_operation_of_the_server_is_tried() -> None:
    tried = {(operation.method.upper(), operation.path) for operation in _OPERATIONS}
    served = {
        (method, route.path.replace(":path", ""))
        for one in ENDPOINTS
        for route in one.routes()
        for method in one.methods
    }
    assert served - tried == set()
    assert {("POST", "/generate"), ("POST", "/update_weights_from_ipc"), ("GET", "/")} <= served


def _shorten(case: Case) -> None:
    for sent in (case.body, case.query):
        if not isinstance(sent, dict):
            continue
        if case.path == "/init_weights_update_group":
            sent["timeout"] = sent.get("timeout", 300.0)  # for everybody to join, who never do
        if case.path == "/v1/chat/completions":
            sent["max_tokens"] = sent.get("max_tokens", 0)  # without one it goes on to the end of the context
        sent |= {name: value for name, value in _SHORT.items() if isinstance(sent.get(name), (int, float))}
        if "sampling_params" in sent or case.path == "/generate":
            params = sent.get("sampling_params")
            if params is None or isinstance(params, dict):
                sent["sampling_params"] = {**(params or {}), "max_new_tokens": 2}
