"""``devicekit example-model``: a small model in two versions, to try everything with; nothing is downloaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from devicekit.contract.errors import ConfigurationError

# Each message between its role and the end mark, which is where a small model may stop.
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
_VERSIONS = ("v1", "v2")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="devicekit example-model",
        description="Write a small random Llama-style model (about 0.5 MB) with tokenizer and chat template into "
        "DIR/v1, and the same model with other weights into DIR/v2. It says nothing sensible, and serves as any "
        "other does.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="where to write; made if it is not there")
    options = parser.parse_args(arguments)
    folders = [options.folder / version for version in _VERSIONS]
    for one in folders:
        if one.exists():
            raise ConfigurationError(f"{one} exists already: name another folder, or remove it first.")
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{options.folder} cannot be made: {error.strerror}.") from error

    from devicekit.devtools.reference import write_model

    for seed, one in enumerate(folders, start=1):
        write_model(one, seed=seed, chat_template=_CHAT_TEMPLATE)
        print(f"  {one}")
    first, second = folders
    print(
        f"\nNow:  devicekit generate --model {first} --prompt 'Pages of keys' --max-new-tokens 8\n"
        f"      devicekit serve --model {first} --allowed-weights-root {second}"
    )
    return 0
