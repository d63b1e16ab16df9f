"""``devicekit demo``: a model served through one reinforcement-learning cycle, and checked token for token."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from devicekit.commands.choice import choice_text
from devicekit.commands.demo_display import Display, PlainDisplay, VerbLine
from devicekit.contract.errors import ConfigurationError
from devicekit.contract.text import human_bytes
from devicekit.device import device_of
from devicekit.devtools.reference import Comparison, Oracle, noisy_copy, write_model
from devicekit.engine import Engine, EngineConfig, Generation
from devicekit.registry.request import parse_request
from devicekit.registry.selection import select
from devicekit.runners.checkpoint import ModelDirectory
from devicekit.scheduling.messages import (
    Continue,
    Flush,
    Operation,
    Pause,
    PauseMode,
    UpdateWeightsFromDisk,
)
from devicekit.scheduling.request import SamplingParams

_PROMPTS = (
    "A device is opened once",
    "Pages of keys and values",
    "The scheduler admits a request when there is room, and",
    "Weights change while requests wait, and the next token comes from",
    "What is unknown is said to be unknown",
    "Memory",
    "A stream, an event and a clock: the work is really pending until somebody waits for it, so",
    "The allocator keeps what it was given",
    "Every request is answered",
    "No request is lost when the pool is exhausted; the youngest steps back and keeps its tokens, because",
    "Flush forgets, empty gives back",
    "Who asks for a number that nobody counted",
)
# Short and long outputs side by side: some end before the weights change, some after.
_LENGTHS = (12, 96, 24, 72, 8, 120, 48, 16, 96, 64, 10, 80)
_CHANGE_AFTER = 4  # requests done when the cycle starts
_FLUSH_DEADLINE = 120.0  # seconds
_FIRST_VERSION, _SECOND_VERSION = "v1", "v2"

_FAILED = "\nThe served tokens are not the model's own. Please report this, with the output above."
_NEXT = """
Every token is the model's own, under both versions of its weights.
Where to go next:
  devicekit info                                the device and its hooks
  devicekit demo --model DIR                    the same with a model of yours
  devicekit generate --model DIR --prompt TEXT  complete a prompt
  devicekit conformance run --backend cpu       check a backend by effect"""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="devicekit demo",
        description="Serve a dozen prompts in one continuous batch, change the weights in mid-flight as "
        "reinforcement learning does, and compare every token with transformers' own generate.",
    )
    parser.add_argument(
        "--model", metavar="DIR", help="a local model directory; default: a small one made here"
    )
    parser.add_argument(
        "--second-model",
        metavar="DIR",
        help="the weights to change to; default: a copy of the model with a little noise added",
    )
    parser.add_argument("--device", help="backend, or backend:index; default: the best of this machine")
    parser.add_argument(
        "--simulate", action="store_true", help="run on the simulated accelerator, which counts every byte"
    )
    options = parser.parse_args(arguments)
    if options.simulate:
        options.device = _simulated_device()
    if options.second_model and not options.model:
        raise ConfigurationError("--second-model needs --model.")
    with tempfile.TemporaryDirectory(prefix="devicekit-demo-") as folder, _open_display() as display:
        return _Demo(display, options.device, _checkpoints(options, Path(folder), display)).run()


def _simulated_device() -> str:
    from devicekit.testing.sim_backend import register

    return register().name


def _open_display() -> Display:
    """The best display this terminal can show."""
    try:
        from devicekit.commands.rich_display import RichDisplay
    except ImportError:
        return PlainDisplay()
    return RichDisplay()


def _checkpoints(options: argparse.Namespace, folder: Path, display: Display) -> tuple[Path, Path]:
    if options.model is None:
        display.say("Writing a small Llama-style checkpoint, and a second version of it, to disk.")
        return (
            write_model(folder / "v1", seed=1),
            write_model(folder / "v2", seed=2),
        )
    directory = ModelDirectory.open(options.model)
    if options.second_model is not None:
        return directory.path, ModelDirectory.open(options.second_model).path
    size = sum(file.stat().st_size for file in directory.weight_files)
    free = shutil.disk_usage(folder).free
    if size * 1.1 > free:
        raise ConfigurationError(
            f"A second version of {directory.path} takes {human_bytes(size)}, and {human_bytes(free)} are free "
            f"in {folder.parent}. Name one with --second-model."
        )
    display.say(f"Writing a second version of {directory.path} ({human_bytes(size)}), with a little noise.")
    return directory.path, noisy_copy(directory, folder / "v2")


@dataclass(frozen=True, slots=True)
class _Served:
    prompt: list[int]
    generation: Generation
    limit: int


class _Demo:
    def __init__(self, display: Display, request: str | None, checkpoints: tuple[Path, Path]) -> None:
        self._display = display
        self._request = request
        self._first, self._second = checkpoints
        self._served: list[_Served] = []

    def run(self) -> int:
        """The whole demo; returns the exit status."""
        selection = select(self._request)
        index = parse_request(self._request)[1] if self._request else None
        self._display.say(choice_text(selection))
        device = device_of(selection.backend, index or 0)
        # In float32 the two implementations agree to the last token; narrower types round differently.
        engine = Engine.open(self._first, device, config=EngineConfig(), dtype=torch.float32)
        engine.scheduler.state.requests.name_weights(_FIRST_VERSION)
        plan = engine.plan
        self._display.say(
            f"{human_bytes(plan.available_bytes)} available; KV pool of {plan.num_pages} pages of "
            f"{plan.page_size} tokens ({human_bytes(plan.pool_bytes)}).\n"
        )
        self._submit(engine)
        self._serve_until(engine, _CHANGE_AFTER)
        self._cycle(engine)
        self._serve_until(engine, len(self._served))
        return self._verify(engine)

    def _submit(self, engine: Engine) -> None:
        limits = engine.runner.limits
        for number, (text, length) in enumerate(zip(_PROMPTS, _LENGTHS, strict=True)):
            if engine.tokenizer is None:
                prompt = [(7 * number + step) % limits.vocab_size for step in range(4 + 3 * number)]
            else:
                prompt = engine.encode(text)
            params = SamplingParams(max_new_tokens=length, temperature=0.0)
            self._served.append(_Served(prompt, engine.submit(prompt, params), length))
        self._display.record(
            VerbLine("submit", f"{len(_PROMPTS)} prompts of mixed length", engine.blockers())
        )

    def _serve_until(self, engine: Engine, done: int) -> None:
        """Step until that many requests are done and no prompt is half computed."""
        while self._done() < done or (done < len(self._served) and engine.scheduler.state.prefilling):
            engine.step()
            self._show_progress(engine)

    def _done(self) -> int:
        return sum(one.generation.done for one in self._served)

    def _cycle(self, engine: Engine) -> None:
        """Pause in place, change the weights, continue, take new work, and flush when all of it is done."""
        self._perform(engine, "pause in place", Pause("pause", PauseMode.IN_PLACE))
        self._perform(engine, "flush", Flush("flush-refused"))
        update = UpdateWeightsFromDisk(
            "update", flush_cache=False, weight_version=_SECOND_VERSION, path=str(self._second)
        )
        self._perform(engine, "update from disk", update)
        self._perform(engine, "continue", Continue("continue"))
        self._submit(engine)
        flush = Flush("flush", timeout=_FLUSH_DEADLINE)
        self._perform(engine, f"flush, {_FLUSH_DEADLINE:.0f} s deadline", flush)

    def _perform(self, engine: Engine, verb: str, operation: Operation) -> None:
        blockers, before = engine.blockers(), _kv_bytes(engine)
        engine.post(operation)
        while (reply := engine.take_reply(operation.id)) is None:
            engine.step()
            self._show_progress(engine)
        release = reply.release
        line = VerbLine(
            verb,
            reply.message if reply.success else f"refused: {reply.message}",
            blockers,
            before,
            _kv_bytes(engine),
            emptied=bool(release),
            reserved_before=release.reserved_before if release else None,
            reserved_after=release.reserved_after if release else None,
            seconds=reply.seconds,
        )
        self._display.record(line)

    def _show_progress(self, engine: Engine) -> None:
        running = len(engine.scheduler.state.running)
        self._display.progress(self._done(), len(self._served), f"{running} running")

    def _verify(self, engine: Engine) -> int:
        """Compare every output with the reference; returns the exit status."""
        self._display.say("\nComparing every token with transformers' own generate, one prompt at a time.")
        torch_device = engine.device.torch_device
        versions = ((_FIRST_VERSION, self._first), (_SECOND_VERSION, self._second))
        oracle = Oracle(versions, torch.float32, torch_device)
        tally: dict[tuple[str, ...], list[Comparison]] = defaultdict(list)
        for number, one in enumerate(self._served):
            comparison = oracle.compare(one.prompt, one.generation, one.limit)
            tally[tuple(span.version for span in one.generation.spans)].append(comparison)
            self._display.progress(number + 1, len(self._served), "comparing")
        for made_by, comparisons in sorted(tally.items()):
            equal = sum(one.equal for one in comparisons)
            tokens = sum(one.tokens for one in comparisons)
            which = " then ".join(made_by)
            self._display.say(
                f"  {equal} of {len(comparisons)} outputs equal ({tokens} tokens), made by weights {which}"
            )
        wrong = [one for comparisons in tally.values() for one in comparisons if not one.equal]
        for comparison in wrong:
            self._display.say(f"  {comparison.id} differs from token {comparison.first_difference} on.")
        self._display.say(_FAILED if wrong else _NEXT)
        return 1 if wrong else 0


def _kv_bytes(engine: Engine) -> int:
    pools, plan = engine.scheduler.state.kv.pools(), engine.plan
    size = pools["pages"].in_use * plan.page_bytes
    if plan.window_page_bytes is not None:
        size += pools["window_pages"].in_use * plan.window_page_bytes
    return size
