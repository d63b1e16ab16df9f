"""The engine: a model on a device, its pools and its scheduler, driven by the caller's thread.

`generate` steps until its requests are done, `step` does one step, and every verb steps until it is answered.
Requests that were submitted before go on meanwhile.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import torch

from devicekit.clock import Clock, SystemClock
from devicekit.contract.text import shown
from devicekit.coordination import SingleRank, run_on_all_ranks
from devicekit.device import Device, available_memory, get_device
from devicekit.engine.capturing import capture_decoding
from devicekit.engine.config import EngineConfig, plan_pool
from devicekit.engine.generation import Generation
from devicekit.engine.opening import refuse_nonfinite, require_splittable, split_of, tokenizer_of
from devicekit.engine.verbs import EngineVerbs
from devicekit.field_types import type_problems
from devicekit.memory.host_kv import HostKVPool
from devicekit.release import ReleasePoints
from devicekit.runners.drafted import DraftedRunner
from devicekit.runners.model_pools import build_pools
from devicekit.runners.transformers_runner import TransformersRunner
from devicekit.scheduling.batch import Runner
from devicekit.scheduling.errors import InvalidRequest
from devicekit.scheduling.interface import EngineScheduler
from devicekit.scheduling.kv_cache.host_cache import attach_host_cache
from devicekit.scheduling.messages import Abort, Reply, Selector
from devicekit.scheduling.participants import Participant
from devicekit.scheduling.request import Request, SamplingParams, prompt_array
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits, Step
from devicekit.text import GrammarCompiler, RequestText, TokenizerVocabulary
from devicekit.weights.install import WeightControl, install
from devicekit.weights.joint import JointRegion
from devicekit.weights.occupation import MemoryTag, Region
from devicekit.weights.store import Model, WeightStore

if TYPE_CHECKING:
    from devicekit.scheduling.ranks.group import RankGroup

ParameterValue: TypeAlias = (
    "float | int | bool | tuple[str, ...] | tuple[int, ...] | tuple[tuple[int, float], ...] | None"
)
"""What a field of `SamplingParams` may be."""


class Engine(EngineVerbs):
    """A model being served. Build one with `open`."""

    def __init__(
        self,
        runner: TransformersRunner,
        device: Device,
        config: EngineConfig,
        *,
        clock: Clock | None = None,
        releases: ReleasePoints | None = None,
        ranks: RankGroup | None = None,
        draft: TransformersRunner | None = None,
    ) -> None:
        self.device = device
        self.runner = runner
        self.draft = draft
        self.config = config
        self.ranks = 1 if ranks is None else ranks.size  # that serve together
        self.clock: Clock = ranks.clock if ranks is not None else clock or SystemClock()
        available = available_memory(device).bytes
        if ranks is not None:
            available = ranks.least(available or 0) or None
            ranks.require_all()
        served: Runner = runner if draft is None else DraftedRunner(runner, draft)
        self.plan = plan_pool(
            runner.layout,
            served.limits,
            available,
            config,
            states=runner.states,
            companions=() if draft is None else (draft.layout,),
        )
        if config.refuse_nonfinite_weights:
            run_on_all_ranks(ranks or SingleRank(), lambda: refuse_nonfinite(runner))
        self.tokenizer = tokenizer_of(runner.directory)
        self.pools = build_pools(
            device, self.plan, runner, draft, snapshots=config.snapshots, checked=config.checked
        )
        self.states = self.pools.states
        self.graphs = capture_decoding(device, config, self.pools, runner, draft)
        self.vocabulary = None if self.tokenizer is None else TokenizerVocabulary(self.tokenizer)
        self.grammars = None
        if self.tokenizer is not None:
            limits = served.limits
            self.grammars = GrammarCompiler(self.tokenizer, limits.vocab_size, sorted(limits.eos_token_ids))
        self.scheduler: EngineScheduler = self._schedule(served, releases, ranks)
        self.weights: WeightControl = self._control_weights(ranks)
        self._register_caches()
        self._generations: dict[str, Generation] = {}
        self._replies: dict[str, Reply] = {}
        self._unread: set[str] = set()  # operations whose answers nobody will take
        self._last_params: SamplingParams | None = None  # of which every field is of its type
        self._ids = itertools.count(1)
        self._random = random.Random(config.random_seed)

    @classmethod
    def open(
        cls,
        path: str | Path,
        device: Device | str | torch.device | None = None,
        *,
        config: EngineConfig | None = None,
        dtype: torch.dtype | None = None,
        clock: Clock | None = None,
        ranks: RankGroup | None = None,
        draft: str | Path | None = None,
    ) -> Engine:
        """Load a local Hugging Face model directory onto a device and make it ready to serve.

        Args:
            device: as for `devicekit.get_device`.
            dtype: of weights and KV; default: what the model's config says.
            ranks: serve together with other processes, each with a copy of the model, or with a part of it where
                ``config.tensor_parallel`` says so. Rank 0's engine is used like any other; on the others, only
                ``engine.scheduler`` takes part, by `LockstepScheduler.follow`. ``clock`` is the group's.
            draft: directory of a draft model, which sees every pass and has its keys and values on the same pages
                (see `DraftedRunner`). Nothing is speculated: what it does with that is up to you.

        Raises:
            ConfigurationError: the draft cannot follow the model, or a setting cannot be had with it; or there are
                not as many ranks as are to hold the model together.
            SelectionError, ContractError, InvalidDevice: there is no such device.
            ModelError: the directory cannot be served.
            NotEnoughMemory: not even one short request would fit beside the weights.
            RanksFailed: some ranks cannot open it, and say why.
            RankLost: a rank did not come.
        """

        chosen = config or EngineConfig()
        chosen.require_ranks(1 if ranks is None else ranks.size)
        split = split_of(chosen, ranks)

        def load() -> tuple[Device, TransformersRunner, TransformersRunner | None]:
            handle = get_device(device)
            if split is not None:
                require_splittable(handle, draft)
            second = None if draft is None else TransformersRunner.load(draft, handle, dtype=dtype)
            return handle, TransformersRunner.load(path, handle, dtype=dtype, split=split), second

        handle, runner, second = run_on_all_ranks(ranks or SingleRank(), load)
        if split is not None and ranks is not None:
            library, kind = str(handle.collective_backend()), handle.torch_device.type
            runner.exchange(ranks.open_channel(library, kind))
        return cls(runner, handle, chosen, clock=clock, ranks=ranks, draft=second)

    def _schedule(
        self, served: Runner, releases: ReleasePoints | None, ranks: RankGroup | None
    ) -> EngineScheduler:
        config, states = self.config, self.states
        limits = SchedulerLimits(
            num_pages=self.plan.num_pages,
            page_size=config.page_size,
            max_running=config.max_running,
            max_batch_tokens=config.max_batch_tokens,
            max_slowdown=config.max_slowdown,
            policy=config.policy,
            prefix_caching=config.prefix_caching,
            conservativeness=config.conservativeness,
            window_pages=self.plan.window_pages,
            state_snapshots=0 if states is None else states.snapshots,
            checked=config.checked,
            invalid_logits=config.invalid_logits,
        )
        slots = None if states is None else states.slots
        if ranks is None:
            return Scheduler(
                served,
                self.device,
                limits,
                clock=self.clock,
                releases=releases,
                detokenizer=self.vocabulary,
                states=slots,
                grammars=self.grammars,
            )
        # Not every build of torch has what it needs.
        from devicekit.scheduling.ranks.scheduler import LockstepScheduler

        return LockstepScheduler(
            served,
            self.device,
            limits,
            ranks,
            policies=None if releases is None else releases.policies,
            detokenizer=self.vocabulary,
            states=slots,
            grammars=self.grammars,
        )

    def _control_weights(self, ranks: RankGroup | None) -> WeightControl:
        """Let the scheduler update the weights of the model and its draft, and release memory."""
        runner, draft, config = self.runner, self.draft, self.config
        store = WeightStore(
            self.scheduler.state,
            self.device,
            Model(runner, runner.weight_aliases(), runner.sharding),
            refuse_nonfinite=config.refuse_nonfinite_weights,
        )
        weights = install(
            self.scheduler.control,
            store,
            loaders={Selector.TARGET: runner},
            regions=self._regions(),
            rank=0 if ranks is None else ranks.rank,
        )
        if config.await_fleet:
            weights.membership.wait_for_fleet()
        if draft is not None:
            weights.register_draft(Model(draft, draft.weight_aliases()), draft)
        return weights

    def _register_caches(self) -> None:
        """Let a flush also forget compiled grammars, and then the figures of the old prefix cache."""
        if self.grammars is not None:
            self.scheduler.register(Participant("grammar_cache", self.grammars.flush))
        figures = self.scheduler.state.requests.cache_figures
        self.scheduler.register(Participant("cache_metrics", figures.reset))

    def _regions(self) -> dict[MemoryTag, Region]:
        pools = self.pools
        regions: dict[MemoryTag, Region] = {MemoryTag.KV_CACHE: JointRegion(pools.parts)}
        if self.graphs.captures:
            regions[MemoryTag.GRAPHS] = self.graphs
        if self.config.host_kv_tokens:
            count = -(-self.config.host_kv_tokens // self.config.page_size)
            beside = () if pools.draft is None else (pools.draft,)
            host = HostKVPool(self.device, pools.kv, count, companions=beside)
            regions[MemoryTag.HOST_KV] = attach_host_cache(self.scheduler, host)
        return regions

    # -- Requests ---------------------------------------------------------------------------------------------

    def submit(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        stream: bool = False,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Generation:
        """Queue a prompt, text or token ids. The result fills in while the engine steps.

        Raises:
            InvalidRequest: it can never run. Nothing was allocated for it.
            MissingTokenizer: the prompt is text, and the model directory has no tokenizer.
        """
        tokens = self.encode(prompt) if isinstance(prompt, str) else prompt
        request = Request(
            request_id or self._next_id("request"),
            prompt_array(tokens),
            _chosen(params),
            priority=priority,
            timeout=timeout,
            stream=stream,
            seed=self.draw_seed(),
        )
        return self._add(request)

    def submit_samples(
        self,
        prompt: str | Sequence[int],
        n: int,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        stream: bool = False,
        priority: int = 0,
        timeout: float | None = None,
    ) -> list[Generation]:
        """Queue ``n`` completions of one prompt, with the seeds seed, seed + 1, and so on.

        Their ids are ``request_id`` with ``_0``, ``_1``, … behind. Where prefixes are cached the full pages of
        the prompt are computed once; the others wait for them. They stop, stream and are aborted one by one
        (``Abort(prefix=...)`` ends all).

        Raises:
            InvalidRequest: they can never run, or ``n`` is below 1; then none of them is queued.
            MissingTokenizer: as `submit`.
        """
        if not isinstance(n, int) or n < 1:
            raise InvalidRequest(f"n must be a whole number of at least 1, not {shown(n)}.")
        base = request_id or self._next_id("request")
        tokens = prompt_array(self.encode(prompt) if isinstance(prompt, str) else prompt)
        chosen = _chosen(params)
        first = self.draw_seed() if chosen.seed is None else chosen.seed
        generations: list[Generation] = []
        try:
            for at in range(n):
                request = Request(
                    f"{base}_{at}",
                    tokens,
                    dataclasses.replace(chosen, seed=first + at),
                    priority=priority,
                    timeout=timeout,
                    stream=stream,
                )
                generations.append(self._add(request))
        except BaseException:
            self._abort(generations)
            raise
        return generations

    def _add(self, request: Request) -> Generation:
        wrong = type_problems(request, "id", "priority", "timeout", "stream")
        if request.params is not self._last_params:
            wrong += type_problems(request.params)
        if wrong:
            raise InvalidRequest(f"Request {shown(request.id)} cannot run: {'; '.join(wrong)}.")
        self._last_params = request.params
        self.scheduler.add(request)
        generation = self.generation(request)
        self._generations[request.id] = generation
        return generation

    def draw_seed(self) -> int:
        """A seed for a request that was given none."""
        return self._random.getrandbits(62)

    def generation(self, request: Request) -> Generation:
        """The object that fills in with a request's outputs. Its text is made with the request's own options."""
        maker, params = None, request.params
        if self.vocabulary is not None and not params.stop:
            maker = RequestText(self.vocabulary, request.prompt.tolist(), params.text_options)
        return Generation(request.id, len(request.prompt), maker=maker, keep_stop=params.keep_stop)

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | None = None,
        **overrides: ParameterValue,
    ) -> list[Generation]:
        """Complete prompts and wait for all of them. Keyword arguments override fields of ``params``.

        Raises:
            InvalidRequest: one of them can never run; then none of them has run.
            InvalidOperation: none of them could start: generation is paused, or memory or weights are missing, and
                nothing that would change this is on its way. What stops them later is waited for, since only
                another thread can have posted it.
        """
        if isinstance(prompts, (str, bytes)):
            raise InvalidRequest(f"prompts is a list of prompts: [{shown(prompts)}], not {shown(prompts)}.")
        chosen = _chosen(params, overrides)
        generations: list[Generation] = []
        try:
            generations.extend(self.submit(prompt, chosen) for prompt in prompts)
            self._start(generations)
            while not all(generation.done for generation in generations):
                self._advance()
        except BaseException:
            self._abort(generations)
            raise
        return generations

    def stream(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Complete one prompt, giving out text and tokens as they come.

        Who stops early closes the iterator, as leaving a loop does: the next step aborts the request.

        Raises:
            InvalidRequest, InvalidOperation: as `generate`.
        """
        generation = self.submit(prompt, params, stream=True)
        text = tokens = 0
        try:
            self._start([generation])
            while True:
                if len(generation.tokens) > tokens or generation.done:
                    yield generation.text[text:], tuple(generation.tokens[tokens:])
                    text, tokens = len(generation.text), len(generation.tokens)
                if generation.done:
                    return
                self._advance()
        except GeneratorExit:  # perhaps from the garbage collector, within a step: posted, and not performed
            abort = Abort(self._next_id("abort"), generation.id)
            self._unread.add(abort.id)
            self.post(abort)
            raise
        except BaseException:
            self._abort([generation])
            raise

    def step(self) -> Step:
        """One step of the scheduler; results reach their `Generation`."""
        step = self.scheduler.step()
        for output in step.outputs:
            generation = self._generations[output.id]
            generation.receive(output)
            if generation.done:
                del self._generations[output.id]
        self._replies.update((reply.id, reply) for reply in step.replies if reply.id not in self._unread)
        self._unread.difference_update(reply.id for reply in step.replies)
        return step

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text; ``special``: with the special tokens that the tokenizer adds around it.

        Raises:
            MissingTokenizer: the model directory has none.
            InvalidRequest: it is no text, or has halves of characters in it.
        """
        tokenizer = self.tokenizer or self.runner.directory.tokenizer()
        try:
            text.encode()
            tokens: list[int] = tokenizer.encode(text, add_special_tokens=special)
        except (AttributeError, UnicodeEncodeError) as error:
            raise InvalidRequest(f"{shown(text)} is no text that has token ids.") from error
        return tokens

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of the model, and of its draft."""
        models = [self.runner] if self.draft is None else [self.runner, self.draft]
        return sum(weight.nbytes for model in models for _, weight in model.named_weights())


def _chosen(
    params: SamplingParams | None, overrides: Mapping[str, object] = MappingProxyType({})
) -> SamplingParams:
    if params is not None and not isinstance(params, SamplingParams):
        raise InvalidRequest(f"params must be SamplingParams, not {shown(params)}.")
    known = {field.name for field in dataclasses.fields(SamplingParams)}
    if unknown := sorted(overrides.keys() - known):
        raise InvalidRequest(
            f"There is no sampling parameter {shown(unknown[0])}; there are {', '.join(sorted(known))}."
        )
    chosen = params or SamplingParams()
    return dataclasses.replace(chosen, **overrides) if overrides else chosen  # type: ignore[arg-type]  # as above
