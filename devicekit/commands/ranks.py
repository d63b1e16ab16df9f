"""``torchrun --nproc-per-node N -m devicekit.commands.ranks``: one engine on N ranks, from start to stop.

Completes prompts, replaces the weights as often as asked, and completes them again after each time.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

from devicekit.contract.errors import DeviceKitError
from devicekit.device import Device
from devicekit.engine import Engine
from devicekit.opening import get_device
from devicekit.scheduling.errors import RankLost
from devicekit.scheduling.rank_group import RankGroup
from devicekit.scheduling.ranks import RankedScheduler


def main(arguments: Sequence[str] | None = None) -> int:
    """Take part as the rank that torchrun's variables say; exit status 1: a rank is lost, or cannot begin."""
    parser = argparse.ArgumentParser(prog="torchrun -m devicekit.commands.ranks", description=__doc__)
    parser.add_argument("--model", required=True, metavar="DIR", help="local Hugging Face model directory")
    parser.add_argument("--prompt", required=True, action="append", help="text to continue; may be repeated")
    parser.add_argument("--update", default=[], action="append", metavar="DIR", help="load other weights")
    parser.add_argument("--device", help="backend, of which each rank takes the index LOCAL_RANK")
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds a rank may be late")
    options = parser.parse_args(arguments)

    dist.init_process_group("gloo", timeout=timedelta(seconds=options.timeout))
    ranks = RankGroup(timeout=options.timeout)
    try:
        engine = Engine.open(options.model, _device(options.device), ranks=ranks)
        assert isinstance(engine.scheduler, RankedScheduler)
        if ranks.rank:
            engine.scheduler.follow()
        else:
            _drive(engine, options.prompt, options.update, options.max_new_tokens)
            engine.scheduler.close()
            if ranks.lost is not None and not engine.scheduler.closed:
                raise RankLost(str(ranks.lost), ranks.lost.ranks)
    except DeviceKitError as error:
        ranks.leave(f"{type(error).__name__}: {error}")
        print(f"rank {ranks.rank}: {error}", file=sys.stderr)
        return 1
    finally:
        dist.destroy_process_group()
    return 0


def _drive(engine: Engine, prompts: Sequence[str], updates: Sequence[str], count: int) -> None:
    _complete(engine, prompts, count)
    for path in updates:
        reply = engine.update_weights_from_disk(path)
        print(f"update: {reply.message}")
        _complete(engine, prompts, count)


def _complete(engine: Engine, prompts: Sequence[str], count: int) -> None:
    for prompt, done in zip(
        prompts, engine.generate(prompts, max_new_tokens=count, temperature=0), strict=True
    ):
        print(f"{prompt}{done.text}", flush=True)


def _device(spec: str | None) -> Device:
    """What was asked for, and on this node the index that torchrun gave this rank, where there are indices."""
    device = get_device(spec)
    local = os.environ.get("LOCAL_RANK")
    if local is None or not device.backend.manifest.indexed or (spec is not None and ":" in spec):
        return device
    return get_device(f"{device.backend.name}:{local}")


if __name__ == "__main__":
    sys.exit(main())
