"""What goes into a scheduler and what comes out: control operations, their answers, and generated tokens.

All are plain values. Each operation carries an id and is answered exactly once, under that id.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from devicekit.release import ReleaseEntry
from devicekit.scheduling.request import Finish, Times, TokenLogprob, VersionSpan
from devicekit.scheduling.token_columns import Stream, TokenColumns


@dataclass(frozen=True, slots=True)
class Blocker:
    """One reason for not being idle."""

    name: str  # "running", "prefilling", "waiting", or what a participant calls its own
    count: int

    def __str__(self) -> str:
        return f"{self.name}={self.count}"


def describe(blockers: tuple[Blocker, ...]) -> str:
    """Blockers in one line, for messages."""
    return ", ".join(map(str, blockers)) or "none"


# -- Into the scheduler ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operation:
    """A control operation. ``id`` comes back in its `Reply`."""

    id: str


@dataclass(frozen=True, slots=True)
class Flush(Operation):
    """Forget every logical cache: prefixes, request rows, pages, and what participants registered.

    Refused while anything blocks; with a ``timeout`` (seconds) it waits that long for the scheduler to be idle.
    Waiting requests that hold no KV do not block a paused scheduler.
    """

    timeout: float | None = None
    empty_cache: bool | None = None  # None: as the release point's policy says


class PauseMode(str, enum.Enum):
    """What a pause does to requests in flight."""

    ABORT = "abort"  # end them
    RETRACT = "retract"  # take their KV; they start over from their tokens when generation continues
    IN_PLACE = "in_place"  # leave them as they are, KV included


@dataclass(frozen=True, slots=True)
class Pause(Operation):
    """Start no forward pass until `Continue`. Control operations are still answered."""

    mode: PauseMode = PauseMode.ABORT
    continue_after: float | None = None  # seconds after which it ends by itself; None: never


@dataclass(frozen=True, slots=True)
class Continue(Operation):
    """End a pause, emptying the allocator's cache first unless told otherwise.

    Refused while generation could not run anyway: memory is released, or weights are missing.
    """

    empty_cache: bool | None = None


@dataclass(frozen=True, slots=True)
class Abort(Operation):
    """End requests: one by its id, all whose id starts with ``prefix``, or all there are."""

    request_id: str | None = None
    prefix: str | None = None
    all: bool = False


@dataclass(frozen=True, slots=True)
class Drain(Operation):
    """Let the requests that hold KV run to their end, start no others, and pause when they are done.

    Waiting requests stay where they are. With a ``timeout`` (seconds) that passes first, nothing has changed
    but that some requests have ended, and generation goes on.
    """

    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Withdraw(Operation):
    """Say that nobody waits for another operation any more.

    If that operation is still waiting itself, it is refused and changes nothing. If it has begun, it goes on to
    its end.
    """

    operation_id: str = ""


class Selector(str, enum.Enum):
    """Which models an operation on weights concerns."""

    ALL = "all"
    TARGET = "target"
    DRAFT = "draft"


@dataclass(frozen=True, slots=True)
class UpdateWeights(Operation):
    """Replace the model's weights. Each source is a subclass.

    The new weights are loaded and checked, and the old ones kept, while requests go on. They are written between
    two forward passes: at once while paused, and otherwise as soon as no request is in flight. Once they are ready
    to be written, new requests wait.
    """

    stages: ClassVar[bool] = True  # False: new weights can be loaded only while nothing is generated

    flush_cache: bool = True
    empty_cache: bool | None = None  # None: as the release point's policy says
    abort_all_requests: bool = False
    weight_version: str | None = None
    selector: Selector = Selector.ALL


@dataclass(frozen=True, slots=True)
class UpdateWeightsFromDisk(UpdateWeights):
    """Replace the weights by those of a local model directory."""

    path: str = ""
    within: tuple[str, ...] = ()  # directories in which its files have to lie, links followed; none: anywhere


# -- Out of the scheduler -------------------------------------------------------------------------------------


class UpdateOutcome(str, enum.Enum):
    """What a weight update left behind."""

    UNCHANGED = "unchanged"  # nothing was written
    UPDATED = "updated"
    UPDATED_NOT_FLUSHED = "updated_not_flushed"  # new weights, and caches made by the old ones
    PARTIAL = "partial"  # some tensors are new: discard the model


class Refusal(str, enum.Enum):
    """Why an operation was refused."""

    INVALID = "invalid"  # the operation makes no sense as it stands
    UNSUPPORTED = "unsupported"  # this engine has nothing that could do it
    BUSY = "busy"  # not idle: the reply's blockers say why
    TIMED_OUT = "timed_out"  # it was still not idle when the time was up
    WITHDRAWN = "withdrawn"  # it was still waiting when whoever asked had gone
    CONFLICT = "conflict"  # not possible in the present state
    FAILED = "failed"  # it was begun, and failed


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one operation."""

    id: str
    success: bool
    message: str = ""
    blockers: tuple[Blocker, ...] = ()  # what stood in the way
    seconds: float = 0.0  # from its arrival to this answer
    release: ReleaseEntry | None = None  # what the release point on its way did
    refusal: Refusal | None = None  # None: success


def emptied(message: str, release: ReleaseEntry) -> str:
    """``message``, and what went wrong when the allocator's cache was emptied, if anything did."""
    if not release.error:
        return message
    return f"{message} The allocator's cache could not be emptied: {release.error}."


@dataclass(frozen=True, slots=True)
class FlushReply(Reply):
    """The answer to `Flush`. With blockers, nothing changed."""

    pages_freed: int = 0  # cached pages that were forgotten
    failed: tuple[str, ...] = ()  # participants whose own caches could not be forgotten; the others' were


@dataclass(frozen=True, slots=True)
class PauseReply(Reply):
    """The answer to `Pause` and `Continue`."""

    epoch: int = 0  # grows with every change between running and paused
    changed: bool = False
    aborted: int = 0
    retracted: int = 0
    paused_seconds: float | None = None  # `Continue`: how long the pause was


@dataclass(frozen=True, slots=True)
class DrainReply(Reply):
    """The answer to `Drain`."""

    remaining: int = 0  # requests that still hold KV
    waiting: int = 0  # requests that had not begun, and were left waiting
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class AbortReply(Reply):
    """The answer to `Abort`."""

    aborted: int = 0


class Staging(str, enum.Enum):
    """When new weights were loaded and checked."""

    BESIDE = "beside"  # while requests went on
    BETWEEN = "between"  # between two passes: the model is small, or a session holds generation back anyway


class Rollback(str, enum.Enum):
    """Whether an update that fails half-way can be taken back."""

    KEPT = "kept"  # the old values were kept before generation had to wait
    KEPT_LATE = "kept_late"  # while it waited: the weights had changed since they were kept
    NONE = "none"  # they are more bytes than may be kept


@dataclass(frozen=True, slots=True)
class UpdateReply(Reply):
    """The answer to an `UpdateWeights`."""

    outcome: UpdateOutcome = UpdateOutcome.UNCHANGED
    tensors: int = 0
    bytes: int = 0
    weight_version: str | None = None
    flush: FlushReply | None = None
    staging: Staging | None = None  # None: nothing was staged
    rollback: Rollback | None = None  # None: it did not come to writing
    write_seconds: float | None = None  # nothing is generated then; None: it did not come to writing


class Output(NamedTuple):  # a dataclass that is frozen takes five times as long to make
    """Tokens of one request: an increment while it streams, everything not yet reported when it ends."""

    id: str
    tokens: tuple[int, ...]
    finish: Finish | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0  # all so far, these included
    retractions: int = 0
    spans: tuple[VersionSpan, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    text: str | None = None  # that it gained; None: whoever reads the tokens makes their text
    offsets: tuple[int, ...] = ()  # where in the text its tokens begin, where there are log-probabilities
    prompt_logprobs: tuple[TokenLogprob, ...] = ()  # of the prompt's tokens behind the first one asked for
    invalid_logits: int = 0  # tokens so far that were drawn from logits that are no numbers
    times: Times | None = None  # of a request that ended


class Step(NamedTuple):
    """What came out of one step."""

    told: tuple[Output, ...]  # of requests that ended, and of streams that gained more than tokens
    replies: tuple[Reply, ...]
    ran: int = 0  # tokens computed
    columns: TokenColumns | None = None  # tokens of all other streams; None: of none

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Everything that requests gained, as objects, which are made anew each time: one for each request."""
        if self.columns is None:
            return self.told
        return (*_increments(self.columns), *self.told)


def _increments(columns: TokenColumns) -> Iterator[Output]:
    tokens, offsets, made = columns.tokens.tolist(), columns.offsets.tolist(), columns.output_tokens.tolist()
    for at, stream in enumerate(columns.streams):
        yield increment(stream, tuple(tokens[offsets[at] : offsets[at + 1]]), made[at])


def increment(stream: Stream, tokens: tuple[int, ...], output_tokens: int) -> Output:
    """What a stream that goes on has gained, as an object; ``output_tokens`` counts all so far."""
    return Output(
        stream.id,
        tokens,
        None,
        stream.prompt_tokens,
        stream.cached_tokens,
        output_tokens,
        stream.retractions,
        stream.spans,
        invalid_logits=stream.invalid_logits,
    )
