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


def require_ranks(tensor_parallel: int | None, *, copies: bool) -> None:
    """Raise ConfigurationError unless what several ranks are to do was said, and there are as many as it takes."""
    size = int(os.environ["WORLD_SIZE"]) if is_rank() else 1
    if tensor_parallel is not None and tensor_parallel < 1:
        raise ConfigurationError(f"--tensor-parallel is a number of ranks, 1 or more, not {tensor_parallel}.")
    if tensor_parallel is not None and copies:
        raise ConfigurationError(
            "--copies gives every rank the whole model, and --tensor-parallel a part of it: choose one."
        )
    if tensor_parallel is not None and tensor_parallel != size:
        raise ConfigurationError(
            f"--tensor-parallel {tensor_parallel} takes as many ranks, and there {'is' if size == 1 else 'are'} "
            f"{size}: torchrun --nproc-per-node {tensor_parallel} -m devicekit serve ..."
        )
    if size > 1 and tensor_parallel is None and not copies:
        raise ConfigurationError(
            f"There are {size} ranks, and nothing says what for. --tensor-parallel {size} splits the model among "
            "them. Several engines that each serve requests of their own are no ranks: start them one by one, and "
            "steer them by devicekit fleet (docs/fleet.md). --copies has every rank hold the whole model and "
            "compute the same, which saves neither memory nor time."
        )


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
