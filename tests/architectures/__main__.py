"""Judge every architecture: ``make architectures``. Writes the table of what is served, and why not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from transformers.utils import logging

from tests.architectures.judge import Finding, Verdict, judge
from tests.architectures.tiny import ARCHITECTURES

_TITLES = {
    Verdict.EQUAL: "Served with the model's own tokens",
    Verdict.REFUSED: "Refused by name",
    Verdict.UNTRIED: "Not tried",
    Verdict.WRONG: "Wrong",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.architectures")
    parser.add_argument("architectures", nargs="*", help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="of weights and prompts")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    findings: list[Finding] = []
    for one in options.architectures or ARCHITECTURES:
        findings.append(judge(one, seed=options.seed))
        print(f"{one}: {findings[-1].verdict.value} {findings[-1].remark}".rstrip(), flush=True)
    if options.markdown:
        options.markdown.write_text(table(findings))
    return int(any(one.verdict is Verdict.WRONG for one in findings))


def table(findings: Sequence[Finding]) -> str:
    """What became of each, by verdict."""
    lines = [
        "# Architectures",
        "",
        "Every causal language model of transformers, and some settings that make another one of it: a tiny",
        "model with random weights, its tokens beside those of the model's own `generate`. Prompts are cut into",
        "chunks at random, computed in random company, on shuffled pages. Written by `make architectures`, on the",
        f"CPU, with transformers {version('transformers')} and torch {version('torch')}.",
        "",
        "What is refused is refused with this sentence before anything is served. Not tried: a tiny model could",
        "not be made, or says nothing by which equality could be told.",
        "",
        "| | architectures |",
        "|---|---|",
    ]
    by_verdict = {kind: [one for one in findings if one.verdict is kind] for kind in _TITLES}
    lines += [f"| {_TITLES[kind]} | {len(found)} |" for kind, found in by_verdict.items()]
    for kind, found in by_verdict.items():
        if found:
            lines += ["", f"## {_TITLES[kind]}", "", "| architecture | remark |", "|---|---|"]
            lines += [f"| {one.architecture} | {one.remark.replace('|', '/')} |" for one in found]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
