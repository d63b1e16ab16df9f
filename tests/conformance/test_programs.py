"""Programs of hooks: the same ones each time, and a failure names the steps without which it does not happen."""

from __future__ import annotations

import subprocess
import sys

from devicekit_conformance.programs import draw

_SCRIPT = """
from devicekit_conformance.context import Context
from devicekit_conformance.programs import draw, fault_of
from devicekit_conformance.selftest.model import PROBE, derived
from devicekit_conformance.target import Target
from devicekit_conformance.trying import warm_up
warm_up()
parts = "the_work_of_another", "set_allocator_setting"
name = next(name for name in derived() if all(part in name for part in parts))
ctx = Context(Target(derived()[name].address, PROBE))
every = sorted(ctx.implemented)
print(fault_of(ctx, draw(["set_allocator_setting"], every, ctx.device_count, "a test")))
"""


def test_a_program_is_the_same_one_each_time_and_tries_every_hook() -> None:
    hooks = ["create_event", "empty_cache", "synchronize"]
    first, second = (draw(hooks[:2], hooks, 3, seed) for seed in ("one", "two"))
    assert first == draw(hooks[:2], hooks, 3, "one") != second
    assert {step.what for step in first} >= set(hooks)
    assert {(step.what, step.kind) for step in first} >= {(hook, "effect") for hook in hooks[:2]}
    assert {step.index for step in first} == {0, 1, 2}


def test_a_failure_names_what_went_before_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said, _, before = done.stdout.strip().partition("Before it: ")
    assert said.startswith("set_allocator_setting()"), done.stdout
    assert before.count(",") <= 6
    assert any(hook in before for hook in ("create_graph()", "create_event()", "create_stream()")), (
        done.stdout
    )
