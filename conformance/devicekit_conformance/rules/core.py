"""DK-CORE: presence, indices, properties, and hooks that do what their declaration says."""

from __future__ import annotations

import threading

from devicekit_conformance import frozen_contract
from devicekit_conformance.context import Context, Failure, NotApplicable, expect, fail
from devicekit_conformance.outcomes import Level
from devicekit_conformance.rulebook import requirement
from devicekit_conformance.silence import says_nothing
from devicekit_conformance.whereabouts import held_up


@requirement("DK-CORE-001", profile="core", device=False)
def availability_is_a_bool(ctx: Context) -> None:
    """is_available() MUST return True or False, the same each time."""
    answers = [ctx.result("is_available") for _ in range(3)]
    expect(len(set(answers)) == 1, f"three calls returned {answers}")


@requirement("DK-CORE-002", profile="core", device=False, after=["DK-CORE-001"])
def count_matches_availability(ctx: Context) -> None:
    """device_count() MUST return an int that is 0 exactly when is_available() is False."""
    available, counts = ctx.result("is_available"), [ctx.result("device_count") for _ in range(3)]
    expect(len(set(counts)) == 1, f"three calls returned {counts}")
    count = counts[0]
    expect(isinstance(count, int) and count >= 0, f"device_count() returned {count!r}")
    expect((count != 0) is available, f"is_available() is {available} and device_count() is {count}")


@requirement("DK-CORE-003", profile="core", isolated=60.0, device=False)
def asking_for_presence_initialises_nothing(ctx: Context) -> None:
    """is_available() and device_count() MUST NOT initialise a device."""
    ctx.raw_hook("is_available")()
    ctx.raw_hook("device_count")()
    if ctx.probe.initialised() is None:
        raise NotApplicable("this device has no context that could be seen")
    expect(ctx.probe.initialised() is False, "a context exists after asking")


@requirement("DK-CORE-004", profile="core")
def device_type_is_torchs(ctx: Context) -> None:
    """The manifest's device_type MUST be a torch device type on which tensors can be made."""
    block = ctx.probe.tensor(16, 0)
    expect(
        block.device.type == ctx.manifest.device_type,
        f"a tensor made there is on {block.device.type!r}, and the manifest says {ctx.manifest.device_type!r}",
    )


@requirement("DK-CORE-005", profile="core", after=["DK-ORDER-001"])
def every_declared_hook_is_implemented(ctx: Context) -> None:
    """A hook that a backend has MUST be implemented: it does not raise NotImplementedError or UnsupportedHook.

    A backend that cannot do something leaves the hook out; then engines can ask first.
    """
    for name in sorted(ctx.implemented):
        if not frozen_contract.hook(name).harmless:
            continue
        ctx.note(name)
        arguments = (0,) if frozen_contract.hook(name).parameters else ()
        try:
            ctx.raw_hook(name)(*arguments)
        except NotImplementedError as error:
            fail(f"{name} raised NotImplementedError({error}): leave the hook out instead")
        except Exception as error:
            raise Failure(f"{name}{arguments} raised {type(error).__name__}: {error}") from error


@requirement("DK-CORE-006", profile="core", after=["DK-CORE-005"])
def results_have_the_contracts_types(ctx: Context) -> None:
    """Every hook MUST return exactly a type that the contract names for it."""
    for name in sorted(ctx.implemented):
        spec = frozen_contract.hook(name)
        if spec.harmless:
            ctx.note(name)
            ctx.result(name, *((0,) if spec.parameters else ()))


@requirement("DK-CORE-007", profile="core", hooks=["device_properties"])
def properties_are_typed_and_constant(ctx: Context) -> None:
    """device_properties() MUST return the same record each time, with values of the declared types or None."""
    first, second = ctx.result("device_properties", 0), ctx.result("device_properties", 0)
    expect(first == second, f"two calls returned {first} and {second}")
    kinds = {
        "name": str,
        "total_memory": int,
        "uuid": str,
        "architecture": str,
        "compute_units": int,
        "unified_memory": bool,
        "driver": str,
    }
    for name, kind in kinds.items():
        value = getattr(first, name)
        expect(value is None or type(value) is kind, f"{name} is {value!r}, not {kind.__name__} or None")
        expect(value is None or value != "", f"{name} is empty: unknown is None")
        if kind is int:
            expect(value is None or value > 0, f"{name} is {value!r}: unknown is None")


@requirement("DK-CORE-008", profile="core", hooks=["current_index", "set_index"])
def current_index_follows_set_index(ctx: Context) -> None:
    """current_index() MUST return what set_index() set, as an int."""
    previous = ctx.result("current_index")
    for index in range(ctx.device_count):
        ctx.result("set_index", index)
        found = ctx.result("current_index")
        expect(found == index, f"after set_index({index}), current_index() is {found}")
        seen = ctx.probe.current_index()
        expect(seen is None or seen == index, f"after set_index({index}), torch's current device is {seen}")
    ctx.result("set_index", previous)


@requirement("DK-CORE-009", profile="core")
def indices_that_do_not_exist_are_refused(ctx: Context) -> None:
    """A hook that takes an index MUST raise for one that does not exist, or say that it knows nothing, rather than
    answer for another device.
    """
    if not ctx.manifest.indexed:
        raise NotApplicable("this backend has one device, which has no index")
    accepted: list[str] = []
    for name in ("device_properties", "memory_info", "synchronize", "set_index"):
        if not ctx.has(name):
            continue
        for index in (ctx.device_count, 10_000, -7):
            ctx.note(f"{name}({index})")
            try:
                answer = ctx.raw_hook(name)(index)
            except Exception:
                continue
            if not says_nothing(name, answer):
                accepted.append(f"{name}({index}) returned {answer!r}")
    expect(not accepted, "; ".join(accepted))


@requirement("DK-CORE-010", profile="hardware", hooks=["current_index"], min_devices=2)
def hooks_keep_the_current_device(ctx: Context) -> None:
    """A hook that is given an index MUST leave the calling thread's current device as it was."""
    ctx.probe.tensor(1, 0)  # a device that nothing has used is not asked whether it is current
    before = ctx.probe.current_index()
    if before is None:
        raise NotApplicable("torch has no current device for this type")
    other = 1 if before == 0 else 0
    for name in sorted(ctx.implemented):
        spec = frozen_contract.hook(name)
        if spec.harmless and spec.parameters:
            ctx.hook(name)(other)
            now = ctx.probe.current_index()
            expect(now == before, f"{name}({other}) left device {now} current instead of {before}")


@requirement("DK-CORE-012", profile="hardware", hooks=["current_index", "set_index"], min_devices=2)
def each_thread_has_its_own_current_device(ctx: Context) -> None:
    """set_index() MUST change the current device of the calling thread only."""
    ctx.hook("set_index")(0)
    thread = threading.Thread(target=ctx.hook("set_index"), args=(1,), daemon=True)
    thread.start()
    late = held_up(thread)
    expect(not late, f"set_index(1) in another thread {late}")
    found = ctx.hook("current_index")()
    expect(found == 0, f"another thread called set_index(1), and here current_index() is {found}")


@requirement("DK-CORE-011", Level.SHOULD, profile="core", hooks=["device_properties"])
def device_has_a_name(ctx: Context) -> None:
    """A backend SHOULD know its device's name and total memory."""
    found = ctx.result("device_properties", 0)
    unknown = [name for name in ("name", "total_memory") if getattr(found, name) is None]
    expect(not unknown, f"{' and '.join(unknown)} unknown")
