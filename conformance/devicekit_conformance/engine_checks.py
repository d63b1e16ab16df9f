"""What an engine does with a device, run over a backend that may lack hooks or lie.

Each function yields what went wrong in words, or nothing. Refusing with one of devicekit's own errors, or with
the backend's own out-of-memory error, is never wrong; losing data, raising something else or hanging is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from devicekit.device import Device
    from devicekit.scheduling.messages import Operation, Output, Reply
    from devicekit.scheduling.scheduler import Scheduler

_PATTERN = 37
_PAGES, _PAGE_SIZE = 20, 4  # too few for all requests at once, so that some must wait or be retracted
_PROMPTS = (1, 3, 9, 14, 22, 5)  # tokens
_NEW_TOKENS = 10
_MOST_STEPS = 400
_WEIGHTS = {"old": 5, "new": 77}


def faults_over(device: Device) -> list[str]:
    """Everything that went wrong while an engine's work ran over ``device``."""
    return [f"{name}: {said}" for name, check in _CHECKS for said in _guarded(check, device)]


def serving_faults(device: Device) -> list[str]:
    """What went wrong with the real scheduler and pools on ``device``, a refusal included."""
    return list(_serving(device))


def _guarded(check: Callable[[Device], Iterator[str]], device: Device) -> list[str]:
    import torch

    from devicekit.contract.errors import DeviceKitError

    found: list[str] = []
    try:
        found.extend(check(device))
    except (DeviceKitError, torch.OutOfMemoryError):
        return found
    except Exception as error:
        found.append(f"raised {type(error).__name__}: {error}")
    return found


def _memory_question(device: Device) -> Iterator[str]:
    """How much memory is left: exact bytes or None, whatever the backend says."""
    from devicekit.device import available_memory, empty_device_cache

    found = available_memory(device)
    for name in ("driver_free", "reusable"):
        value = getattr(found, name)
        if value is not None and type(value) is not int:
            yield f"{name} is {value!r}"
    if not device.supports("memory_info") and found.bytes is not None:
        yield f"nobody was asked, and {found.bytes} bytes are said to be available"
    released = empty_device_cache(device)
    if released is not device.supports("empty_cache"):
        yield f"empty_device_cache() returned {released!r}"


def _live_data(device: Device) -> Iterator[str]:
    """A tensor that is live while everything is released holds its data."""
    import torch

    block = torch.full((1 << 16,), _PATTERN, dtype=torch.uint8, device=device.torch_device)
    for release in (device.empty_cache, device.empty_host_cache, device.collect_ipc):
        result = release()
        if result.called is False and result.reason is None:
            yield "a release did nothing and gave no reason"
    if not bool((block == _PATTERN).all().item()):
        yield "live data was lost"


def _serving(device: Device) -> Iterator[str]:
    """The real scheduler and pools: a pause in place, a weight update, a continue and a flush among requests."""
    from devicekit.scheduling import messages
    from devicekit.scheduling.request import Request, SamplingParams
    from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits
    from devicekit.weights.install import install
    from devicekit.weights.store import Model, WeightStore
    from devicekit_conformance.engine_model import SumModel

    runner = SumModel(device, _PAGES, _PAGE_SIZE, _WEIGHTS["old"])
    limits = SchedulerLimits(_PAGES, _PAGE_SIZE, max_running=4, max_batch_tokens=16, checked=True)
    scheduler = Scheduler(runner, device, limits)
    scheduler.state.requests.name_weights("old")
    store = WeightStore(scheduler.state, device, Model(runner))
    install(scheduler.control, store, loaders={messages.Selector.TARGET: runner})
    prompts = {f"r{n}": [(17 * n + k) % 251 for k in range(size)] for n, size in enumerate(_PROMPTS)}
    params = SamplingParams(max_new_tokens=_NEW_TOKENS, temperature=0.0)
    for name, prompt in prompts.items():
        scheduler.post(Request(name, np.asarray(prompt, np.int32), params))
    update = messages.UpdateWeightsFromDisk(
        "update", flush_cache=False, weight_version="new", path=str(_WEIGHTS["new"])
    )
    script: dict[int, messages.Operation] = {
        5: messages.Pause("pause", messages.PauseMode.IN_PLACE),
        7: update,
        9: messages.Continue("continue"),
        11: messages.Flush("early flush"),
        12: messages.Flush("flush", timeout=60.0),
    }
    run = _run_script(scheduler, script, len(prompts))
    if run.raised is not None:
        yield f"the scheduler's step raised {run.raised}"
        return
    yield from _faults_of_replies(run, script)
    yield from _faults_of_tokens(run, prompts)
    yield from _faults_of_pools(scheduler)


@dataclass
class _Run:
    """What came out of a scheduler."""

    replies: dict[str, list[Reply]] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    ends: dict[str, Output] = field(default_factory=dict)
    raised: str | None = None  # what came out of step()


def _run_script(scheduler: Scheduler, script: Mapping[int, Operation], requests: int) -> _Run:
    """Step until every request has ended and every operation is answered, or far too long."""
    from devicekit.scheduling.messages import Continue

    run = _Run()
    for number in range(_MOST_STEPS):
        if number in script:
            scheduler.post(script[number])
        try:
            step = scheduler.step()
        except Exception as error:  # nothing that a request, an operator or a hook does may end the loop
            run.raised = f"{type(error).__name__}: {error}"
            break
        for output in step.outputs:
            run.tokens.setdefault(output.id, []).extend(output.tokens)
            if output.finish is not None:
                run.ends[output.id] = output
        for reply in step.replies:
            run.replies.setdefault(reply.id, []).append(reply)
            if reply.id == "continue" and not reply.success:
                # What an operator does when the release on the way failed: go on without it.
                scheduler.post(Continue("continue without emptying", empty_cache=False))
        if len(run.ends) == requests and {one.id for one in script.values()} <= run.replies.keys():
            break
    return run


def _faults_of_replies(run: _Run, script: Mapping[int, Operation]) -> Iterator[str]:
    for operation in script.values():
        replies = run.replies.get(operation.id, [])
        if len(replies) != 1:
            yield f"{operation.id!r} was answered {len(replies)} times"
        elif not replies[0].success and not replies[0].message:
            yield f"{operation.id!r} was refused without a reason"
        elif replies[0].success and operation.id == "early flush":
            yield "a flush succeeded while requests were in flight"


def _faults_of_tokens(run: _Run, prompts: Mapping[str, list[int]]) -> Iterator[str]:
    for name, prompt in prompts.items():
        end = run.ends.get(name)
        if end is None or end.finish is None:
            yield f"request {name} never ended"
        elif end.finish.kind.value == "error":
            if not end.finish.message:
                yield f"request {name} failed without a reason"
        elif run.tokens[name] != _expected(prompt, end):
            yield f"request {name} got other tokens than the model gives"


def _expected(prompt: list[int], end: Output) -> list[int]:
    from devicekit_conformance.engine_model import next_token

    tokens = list(prompt)
    for span in end.spans:
        tokens += [0] * (len(prompt) + span.start - len(tokens))
        for _ in range(span.start, span.end):
            tokens.append(next_token(tokens, _WEIGHTS[span.version]))
    return tokens[len(prompt) :]


def _faults_of_pools(scheduler: Scheduler) -> Iterator[str]:
    from devicekit.memory.audit import audit

    kv = scheduler.state.kv
    if scheduler.state.healthy and (left := scheduler.blockers()):
        yield f"everything has ended, and {', '.join(map(str, left))} remain"
    found = audit(kv.pages, owned=b"", cache=kv.prefix)
    if not found.balanced:
        yield f"pages were lost: {found}"
    if kv.table.available != kv.table.num_rows:
        yield "request rows were lost"


_CHECKS: tuple[tuple[str, Callable[[Device], Iterator[str]]], ...] = (
    ("asking what is left", _memory_question),
    ("releasing with live data", _live_data),
    ("serving", _serving),
)
