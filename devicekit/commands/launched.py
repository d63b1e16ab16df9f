"""One command as several ranks: what a launcher such as torchrun says of this process, and how it takes part."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING

import torch.distributed as dist

from devicekit.contract.errors import ConfigurationError, DeviceKitError
from devicekit.device import Device, get_device

if TYPE_CHECKING:
    from devicekit.scheduling.ranks.group import RankGroup
    from devicekit.scheduling.ranks.scheduler import LockstepScheduler

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def is_rank() -> bool:
    """Whether a launcher has started this process as one of several."""
    return all(name in os.environ for name in _VARIABLES) and os.environ["WORLD_SIZE"] != "1"


def run_as_rank(command: str, act: Callable[[RankGroup], int], *, timeout: float, heartbeat: float) -> int:
    """Join the other ranks and act with them; the exit status. Errors are told with the rank that they are of.

    Args:
        command: as errors name it.
        act: raises what is wrong; the other ranks are told.
        timeout: seconds that one rank may be behind another, here and later.
        heartbeat: seconds between signs of life.
    """
    from devicekit.scheduling.ranks.group import RankGroup  # not every build of torch has what it needs

    rank = os.environ["RANK"]
    ranks: RankGroup | None = None
    try:
        _meet(timeout)
        ranks = RankGroup(timeout=timeout, heartbeat=heartbeat)
        return act(ranks)
    except BaseException as error:
        if ranks is not None:
            ranks.leave(f"{type(error).__name__}: {error}")
        if not isinstance(error, DeviceKitError):
            raise
        print(f"{command}: rank {rank}: {error}", file=sys.stderr)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def local_device(spec: str | None) -> Device:
    """What was asked for, and on this node the index that the launcher gave this rank, where there are indices."""
    device = get_device(spec)
    local = os.environ.get("LOCAL_RANK")
    if local is None or not device.backend.manifest.indexed or (spec is not None and ":" in spec):
        return device
    return get_device(f"{device.backend.name}:{local}")


def follow(scheduler: LockstepScheduler) -> None:
    """Take every step that rank 0 takes, until it stops.

    A first signal to end asks rank 0 to stop, which lets every rank go in good order; a second one ends this
    process at once.

    Raises:
        RankLost: a rank was lost.
    """
    failures: list[BaseException] = []

    def take_steps() -> None:
        try:
            with scheduler.state.releases.device.current_where_possible():
                scheduler.follow()
        except BaseException as error:  # raised again below
            failures.append(error)

    def ask(number: int, frame: FrameType | None) -> None:
        scheduler.ask_to_stop()
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_DFL)

    for one in _SIGNALS:
        signal.signal(one, ask)
    # On a thread of its own: one that waits for other ranks hears no signal.
    thread = threading.Thread(target=take_steps, name="devicekit-rank", daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _meet(timeout: float) -> None:
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:  # torch's own errors are RuntimeErrors
        raise ConfigurationError(f"The ranks did not come together within {timeout:g} s: {error}") from error
