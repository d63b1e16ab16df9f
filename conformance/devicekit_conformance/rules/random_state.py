"""DK-RNG: the device's random numbers can be seeded, saved and restored."""

from __future__ import annotations

from devicekit_conformance.context import Context, NotApplicable, expect
from devicekit_conformance.rulebook import requirement


@requirement("DK-RNG-001", profile="core", hooks=["manual_seed"], after=["DK-ORDER-001"])
def a_seed_fixes_the_numbers(ctx: Context) -> None:
    """manual_seed() MUST make the device's random numbers the same for one seed and others for another."""
    drawn = []
    for seed in (1234, 1234, 4321):
        ctx.result("manual_seed", 0, seed)
        drawn.append(list(ctx.probe.random(0, 16)))
    expect(drawn[0] == drawn[1], "two draws after the same seed differ")
    expect(drawn[0] != drawn[2], "draws after two different seeds are the same")


@requirement(
    "DK-RNG-002", profile="core", hooks=["get_rng_state", "set_rng_state"], capabilities=["rng_state"]
)
def a_state_can_be_restored(ctx: Context) -> None:
    """set_rng_state() MUST make the device draw again what it drew after get_rng_state()."""
    state = ctx.result("get_rng_state", 0)
    first = list(ctx.probe.random(0, 16))
    second = list(ctx.probe.random(0, 16))
    ctx.result("set_rng_state", 0, state)
    again = list(ctx.probe.random(0, 16))
    expect(first != second, "two draws in a row are the same")
    expect(first == again, "the draw after restoring the state is not the one that followed it")


@requirement("DK-RNG-003", profile="core", hooks=["get_rng_state"])
def a_state_is_a_host_tensor(ctx: Context) -> None:
    """get_rng_state() MUST return a uint8 tensor on the host, and not advance the generator."""
    import torch

    first, second = ctx.result("get_rng_state", 0), ctx.result("get_rng_state", 0)
    for state in (first, second):
        if isinstance(state, torch.Tensor):
            expect(state.dtype == torch.uint8, f"its dtype is {state.dtype}")
            expect(state.device.type == "cpu", f"it is on {state.device}")
    same = isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor) and torch.equal(first, second)
    expect(same, "two readings in a row differ")


@requirement("DK-RNG-004", profile="core", hooks=["manual_seed"])
def the_hosts_numbers_are_left_alone(ctx: Context) -> None:
    """manual_seed() MUST NOT change the random numbers of the host or of another backend."""
    import torch

    if ctx.manifest.device_type == "cpu":
        raise NotApplicable("the host's generator is this backend's own")
    before = torch.get_rng_state()
    ctx.hook("manual_seed")(0, 99)
    expect(torch.equal(before, torch.get_rng_state()), "the host's random state changed")
