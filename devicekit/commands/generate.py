"""``devicekit generate``: complete a prompt with a local model, printing text as it comes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="devicekit generate", description="Complete prompts with a local Hugging Face model directory."
    )
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="model directory, weights in safetensors"
    )
    parser.add_argument(
        "--prompt", required=True, action="append", help="text to continue; repeat for several in one batch"
    )
    parser.add_argument("--device", help="backend, or backend:index; default: the best of this machine")
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, help="longest output, in tokens; default: %(default)s"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token; default: %(default)g"
    )
    parser.add_argument("--seed", type=int, help="makes what is drawn repeatable; default: drawn anew")
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        help="text that ends the output; repeat for several; default: none",
    )
    options = parser.parse_args(arguments)

    from devicekit.engine import Engine
    from devicekit.scheduling.request import FinishKind, SamplingParams

    params = SamplingParams(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=options.seed,
        stop=tuple(options.stop),
    )
    engine = Engine.open(options.model, options.device)
    if len(options.prompt) == 1:
        print(options.prompt[0], end="", flush=True)
        for text, _ in engine.stream(options.prompt[0], params):
            print(text, end="", flush=True)
        print()
        return 0
    generations = engine.generate(options.prompt, params)
    for prompt, generation in zip(options.prompt, generations, strict=True):
        print(f"{prompt}{generation.text}\n")
    failures = [one.finish for one in generations if one.finish and one.finish.kind is FinishKind.ERROR]
    for failure in failures:
        print(failure.message, file=sys.stderr)
    return 1 if failures else 0
