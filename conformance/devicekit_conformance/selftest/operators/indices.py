"""Which index: a hook that answers for, or acts on, another device than the one it is given."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from functools import partial

from devicekit.contract.hooks import HOOKS
from devicekit_conformance.selftest.building import FIELDS, Body, Call, faulty, takes_index
from devicekit_conformance.selftest.honest import machine
from devicekit_conformance.selftest.operators import Fault, operator, sentence

# The simulated devices are alike in these: whichever is asked, the answer is the same.
_ALIKE = frozenset(
    {"can_access_peer", "copies_overlap", "create_event", "priority_range", "submit_work", "supported_dtypes"}
)
_NEVER_RAISE = frozenset({"is_capturing", "record_memory_history", "graph_pool"})


def _placed(change: Callable[[int], int]) -> Iterator[Fault]:
    for hook in HOOKS:
        if takes_index(hook) and hook not in _ALIKE:
            yield Fault(hook, "", sentence(hook), partial(faulty, {hook: _asking(hook, change)}))


def _asking(hook: str, change: Callable[[int], int]) -> Body:
    place = HOOKS[hook].parameters.index("index")

    def body(call: Call) -> object:
        arguments = list(call.arguments)
        if hook == "set_index" and not 0 <= arguments[place] < len(machine().devices):
            return call.forward()
        arguments[place] = change(arguments[place])
        return call.honest(*arguments)

    return body


@operator("index")
def index_is_ignored_for_the_current_one() -> Iterator[Fault]:
    """The current device is meant, whatever index is given."""
    return (one for one in _placed(lambda index: machine().index_of()) if one.hook != "set_index")


@operator("index")
def index_is_always_the_first() -> Iterator[Fault]:
    """The first device is meant, whatever index is given."""
    return _placed(lambda index: 0)


@operator("index")
def index_is_always_the_last() -> Iterator[Fault]:
    """The last device is meant, whatever index is given."""
    return _placed(lambda index: len(machine().devices) - 1)


@operator("index")
def index_is_the_neighbours() -> Iterator[Fault]:
    """The next device is meant."""
    return _placed(lambda index: (index + 1) % len(machine().devices) if index >= 0 else index)


@operator("index")
def index_is_clamped() -> Iterator[Fault]:
    """An index that does not exist is taken for the last device."""

    def clamp(index: int) -> int:
        return max(0, min(index, len(machine().devices) - 1))

    def asking(hook: str) -> Body:
        place = HOOKS[hook].parameters.index("index")
        return lambda call: call.honest(
            *(clamp(one) if number == place else one for number, one in enumerate(call.arguments))
        )

    for hook in HOOKS:
        if takes_index(hook) and hook not in _ALIKE | _NEVER_RAISE:
            told = "Indices are plain ints of devices that exist; another is refused."
            yield Fault(hook, "", told, partial(faulty, {hook: asking(hook)}))


@operator("index")
def index_counts_from_the_end() -> Iterator[Fault]:
    """-1 is taken for the last device."""

    def asking(hook: str) -> Body:
        place = HOOKS[hook].parameters.index("index")
        count = len(machine().devices)
        return lambda call: call.honest(
            *(
                one % count if number == place and one < 0 else one
                for number, one in enumerate(call.arguments)
            )
        )

    for hook in HOOKS:
        if takes_index(hook) and hook not in _ALIKE | _NEVER_RAISE:
            told = "Indices are plain ints of devices that exist; another is refused."
            yield Fault(hook, "", told, partial(faulty, {hook: asking(hook)}))


@operator("index")
def index_is_right_in_the_first_thread_only() -> Iterator[Fault]:
    """In another thread, the first device is meant."""

    def change(index: int) -> int:
        return index if threading.current_thread() is threading.main_thread() else 0

    return _placed(change)


@operator("index")
def index_is_summed_over() -> Iterator[Fault]:
    """Every device's numbers together are given for each."""

    def body(call: Call) -> object:
        found = [call.honest(index) for index in range(len(machine().devices))]
        call.honest(*call.arguments)
        names = [name for name in FIELDS[hook] if getattr(found[0], name) is not None]
        return dataclasses.replace(
            found[call.arguments[0]], **{name: sum(getattr(one, name) for one in found) for name in names}
        )

    for hook in ("memory_stats", "memory_info"):
        yield Fault(hook, "", sentence(hook), partial(faulty, {hook: body}))


@operator("index")
def index_is_everyones() -> Iterator[Fault]:
    """Every device is acted on, whichever is named."""

    def all_of(hook: str) -> Body:
        def body(call: Call) -> object:
            result = call.forward()
            for index in range(len(machine().devices)):
                if index != call.arguments[0]:
                    call.honest(index, *call.arguments[1:])
            return result

        return body

    for hook in ("reset_peak_memory_stats", "set_memory_fraction", "manual_seed", "set_rng_state"):
        yield Fault(hook, "", sentence(hook), partial(faulty, {hook: all_of(hook)}))
