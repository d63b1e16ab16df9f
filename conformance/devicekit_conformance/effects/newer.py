"""What the hooks do that came after contract 1.0."""

from __future__ import annotations

import torch

from devicekit_conformance.effects import effect
from devicekit_conformance.trial import Trial


@effect("set_current_stream")
def set_current_stream(trial: Trial) -> None:
    stream = trial.new_stream()
    before = trial.own("current_stream", trial.index)
    if stream is None or before is None:
        return
    with trial.on(before):  # which puts the current one back, whatever happens
        trial.call(stream)
        found = trial.own("current_stream", trial.index)
        trial.expect(found == stream, f"the current stream is {found!r}, and {stream!r} was set")
        token = trial.work()
        stream.synchronize()
        trial.expect(token is None or token.done(), "work that was submitted after it is not on the stream")
        trial.call(before)
        found = trial.own("current_stream", trial.index)
        trial.expect(found == before, "the stream before it cannot be made current again")


@effect("default_stream")
def default_stream(trial: Trial) -> None:
    found = trial.call(trial.index)
    side = trial.new_stream()
    if side is None:
        return
    with trial.on(side):
        trial.expect(trial.call(trial.index) == found, "it is another one while a stream is current")
        trial.expect(found != side, "it is the current stream")
    own = trial.own("default_stream", trial.index)
    trial.expect(own is None or found == own, f"it is {found!r}, and torch's own is {own!r}")


@effect("is_pinned")
def is_pinned(trial: Trial) -> None:
    plain = torch.zeros(4096)
    trial.expect(trial.call(plain) is False, "it is True for memory that nobody pinned")
    if trial.has("pin_memory") and trial.ctx.claims("pinned_memory"):
        pinned = trial.ctx.raw_hook("pin_memory")(plain)
        trial.expect(trial.call(pinned) is True, "it is False for what pin_memory() returned")


@effect("register_host_memory")
def register_host_memory(trial: Trial) -> None:
    if not trial.has("unregister_host_memory"):
        return
    tensor = torch.arange(4096)
    address = tensor.data_ptr()
    trial.call(tensor)
    try:
        trial.expect(trial.ctx.probe.pinned(tensor) is not False, "the memory is not page-locked after it")
        trial.expect(tensor.data_ptr() == address, "it moved the tensor")
        trial.expect(torch.equal(tensor, torch.arange(4096)), "it changed the tensor")
    finally:
        trial.other("unregister_host_memory", tensor)


@effect("unregister_host_memory")
def unregister_host_memory(trial: Trial) -> None:
    if not trial.has("register_host_memory"):
        return
    tensor = torch.arange(4096)
    trial.other("register_host_memory", tensor)
    trial.call(tensor)
    trial.expect(trial.ctx.probe.pinned(tensor) is not True, "the memory is page-locked after it")
    trial.expect(torch.equal(tensor, torch.arange(4096)), "it changed the tensor")


@effect("set_allocator_setting")
def set_allocator_setting(trial: Trial) -> None:
    if trial.runtime is None:
        return
    try:
        trial.ctx.raw_hook(trial.hook)("no_such_setting", "1")
    except ValueError:
        return
    except Exception as error:
        trial.fail(f"a setting that does not exist raised {type(error).__name__}, and not ValueError")
    trial.fail("a setting that does not exist was accepted")
