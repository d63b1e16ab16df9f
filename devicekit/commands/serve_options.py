"""The options of ``devicekit serve``, and what engine and server make of them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from devicekit.commands import keys
from devicekit.commands.logs import LEVELS
from devicekit.files import UnreadableFile, read_regular

if TYPE_CHECKING:
    from devicekit.engine import EngineConfig
    from devicekit.server.settings import ServerSettings

_LONGEST_TEMPLATE = 1 << 20  # bytes


def parser() -> argparse.ArgumentParser:
    """The parser with every option, by group."""
    parser = argparse.ArgumentParser(
        prog="devicekit serve", description="Serve a local Hugging Face model directory over HTTP."
    )
    _add_address(parser)
    _add_access(parser)
    _add_limits(parser)
    _add_answers(parser)
    _add_sizes(parser)
    _add_ranks(parser)
    return parser


def _add_address(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="model directory, weights in safetensors")
    add("--device", help="backend, or backend:index; default: the best of this machine")
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; default: %(default)s, reachable from this machine only",
    )
    add(
        "--port",
        type=int,
        default=30000,
        help="TCP port to listen on; 0: any that is free; default: %(default)s",
    )
    add(
        "--served-model-name",
        metavar="NAME",
        help="the model's name in OpenAI's endpoints; default: the name of its directory",
    )
    add("--chat-template", metavar="FILE", help="Jinja template; default: the tokenizer's own")
    add(
        "--log-level",
        choices=LEVELS,
        default="info",
        help="least that is told on standard error: start-up and updates are info, refused verbs warnings; "
        "default: %(default)s",
    )
    add("--access-log", action="store_true", help="a line for every request too; default: none")


def _add_access(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("access").add_argument
    add("--api-key", metavar="KEY", help="demanded from everybody; default: DEVICEKIT_API_KEY, or none")
    add("--api-key-file", metavar="FILE", help="file that holds the API key; default: none")
    add(
        "--admin-api-key",
        metavar="KEY",
        help="demanded by control endpoints; default: DEVICEKIT_ADMIN_API_KEY, or none",
    )
    add("--admin-api-key-file", metavar="FILE", help="file that holds the admin key; default: none")
    add(
        "--allowed-host",
        metavar="NAME",
        action="append",
        default=[],
        help="name that this server is reached by, if others than its address and those of its own network; "
        "repeat for several; '*': any; default: none",
    )
    add(
        "--allowed-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="web page that may call this server, as https://name; repeat for "
        "several; '*': any, for generation; "
        "default: none",
    )
    add(
        "--allowed-weights-root",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="where weight updates may be read from; repeat for several; default: the model directory",
    )
    add(
        "--allow-pickled-weights",
        action="store_true",
        help="read pickled tensors in host memory that trainers on this machine share; runs nothing in them",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("limits").add_argument
    add(
        "--max-concurrent-requests",
        type=int,
        default=1024,
        help="sequences in flight; beyond it: 429; default: %(default)s",
    )
    add(
        "--drain-seconds",
        type=float,
        default=25.0,
        metavar="SECONDS",
        help="that requests get to end when the server is told to stop; default: %(default)g",
    )
    add(
        "--keep-alive-seconds",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="that a connection is kept between two requests; default: %(default)g",
    )
    add(
        "--max-body-bytes",
        type=int,
        default=64 << 20,
        help="size of a request, in bytes; beyond it: 413; default: %(default)s",
    )


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("sizes").add_argument
    add(
        "--page-size",
        type=int,
        default=16,
        metavar="TOKENS",
        help="tokens that share a page of KV; default: %(default)s",
    )
    add(
        "--max-running-requests",
        type=int,
        default=32,
        help="requests that are computed at a time; default: %(default)s",
    )
    add(
        "--max-batch-tokens",
        type=int,
        default=512,
        help="tokens of a forward pass, at most; default: %(default)s",
    )
    add(
        "--max-slowdown",
        type=float,
        default=4.0,
        metavar="TIMES",
        help="how many times as long as usual running requests may wait for a token while prompts are computed; "
        "0: as long as that takes; default: %(default)g",
    )
    add(
        "--memory-fraction",
        type=float,
        default=0.9,
        help="share of what is free, 0 to 1, for KV; default: %(default)s",
    )
    add("--kv-tokens", type=int, help="size of the KV pool, in tokens; default: what fits")
    add(
        "--host-kv-tokens",
        type=int,
        default=0,
        help="second level of the prefix cache in host memory, in tokens; default: %(default)s",
    )
    add(
        "--state-snapshots",
        type=int,
        help="states of recurrent layers kept for cached prefixes; default: as many as requests run",
    )
    add(
        "--window-kv-tokens",
        type=int,
        help="pool of layers with a window, where others have none, in tokens; "
        "default: one of its own if memory is "
        "short",
    )
    add(
        "--conservativeness",
        type=float,
        default=1.0,
        help="lower admits more requests at once, at the price of retractions; default: %(default)s",
    )
    add(
        "--policy",
        default="fcfs",
        help="who is admitted first: fcfs, priority or longest_prefix; default: %(default)s",
    )
    add(
        "--decode-graphs",
        action=argparse.BooleanOptionalAction,
        help="replay passes that only decode from captured graphs; default: where the device can, "
        "and is not the host",
    )
    add("--disable-prefix-caching", action="store_true", help="compute every prompt anew; default: reuse")
    add(
        "--await-fleet",
        action="store_true",
        help="be ready only once a fleet has brought its weights and said so (/join_fleet)",
    )


def _add_answers(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("answers").add_argument
    add(
        "--logprobs-mode",
        default="sampled",
        choices=("sampled", "raw"),
        help="log-probabilities of the distribution that tokens are drawn from, or of the model's own; "
        "default: %(default)s",
    )
    add(
        "--sampling-defaults",
        default="model",
        choices=("model", "openai"),
        help="of OpenAI's endpoints: what generation_config.json says, or temperature 1 and no limits; "
        "default: %(default)s",
    )
    add(
        "--random-seed",
        type=int,
        help="whence requests without a seed get theirs; default: another each time",
    )
    add(
        "--invalid-logits",
        default="refuse",
        choices=("refuse", "mark"),
        help="what becomes of requests whose logits are NaN or infinite; default: %(default)s",
    )
    add(
        "--refuse-nonfinite-weights",
        action="store_true",
        help="neither open nor take in weights that hold NaN or infinite values",
    )
    add("--sglang-metrics", action="store_true", help="offer metrics under SGLang's names too")


def _add_ranks(parser: argparse.ArgumentParser) -> None:
    several = parser.add_argument_group(
        "several ranks", "torchrun --nproc-per-node N -m devicekit serve --tensor-parallel N ..."
    )
    add = several.add_argument
    add(
        "--tensor-parallel",
        type=int,
        metavar="N",
        help="split the model among N ranks, by the plan that transformers has for it; default: one rank",
    )
    add(
        "--expert-parallel",
        action="store_true",
        help="give each of them whole experts, instead of a part of every expert",
    )
    add(
        "--split-partly",
        action="store_true",
        help="split also a model whose plan leaves its attention whole; default: refuse",
    )
    add("--copies", action="store_true", help="have every rank hold and compute the whole model")
    add(
        "--rank-timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="seconds that one rank may be behind another before it is given up; default: %(default)g",
    )
    add(
        "--rank-heartbeat",
        type=float,
        default=0.5,
        metavar="SECONDS",
        help="seconds between signs of life: a process that ended is named after four; default: %(default)g",
    )


def engine_config(options: argparse.Namespace) -> EngineConfig:
    """How an engine is built, as the options say."""
    from devicekit.engine import EngineConfig

    return EngineConfig(
        page_size=options.page_size,
        max_running=options.max_running_requests,
        max_batch_tokens=options.max_batch_tokens,
        max_slowdown=options.max_slowdown or None,
        memory_fraction=options.memory_fraction,
        kv_tokens=options.kv_tokens,
        policy=options.policy,
        prefix_caching=not options.disable_prefix_caching,
        await_fleet=options.await_fleet,
        host_kv_tokens=options.host_kv_tokens,
        window_kv_tokens=options.window_kv_tokens,
        state_snapshots=options.state_snapshots,
        conservativeness=options.conservativeness,
        decode_graphs=options.decode_graphs,
        random_seed=options.random_seed,
        tensor_parallel=options.tensor_parallel,
        expert_parallel=options.expert_parallel,
        split_partly=options.split_partly,
        invalid_logits=options.invalid_logits,
        refuse_nonfinite_weights=options.refuse_nonfinite_weights,
    )


def settings(options: argparse.Namespace) -> ServerSettings:
    """How a server is set up, as options and environment say. Raises ConfigurationError."""
    from devicekit.server.settings import ServerSettings

    return ServerSettings(
        host=options.host,
        port=options.port,
        served_model_name=options.served_model_name,
        api_key=keys.key("--api-key", options.api_key, options.api_key_file, os.environ),
        admin_api_key=keys.key(
            "--admin-api-key", options.admin_api_key, options.admin_api_key_file, os.environ
        ),
        allowed_hosts=tuple(options.allowed_host),
        allowed_origins=tuple(options.allowed_origin),
        max_concurrent_requests=options.max_concurrent_requests,
        max_body_bytes=options.max_body_bytes,
        drain_seconds=options.drain_seconds,
        keep_alive_seconds=options.keep_alive_seconds,
        allowed_weights_roots=tuple(options.allowed_weights_root),
        allow_pickled_weights=options.allow_pickled_weights,
        chat_template=_template(options.chat_template),
        logprobs_mode=options.logprobs_mode,
        sampling_defaults=options.sampling_defaults,
        sglang_metrics=options.sglang_metrics,
    )


def _template(path: str | None) -> str | None:
    from devicekit.contract.errors import ConfigurationError

    if path is None:
        return None
    try:
        return read_regular(path, _LONGEST_TEMPLATE).decode()
    except (UnreadableFile, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The chat template cannot be read: {error}") from error
