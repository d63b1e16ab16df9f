"""Requests, the running batch, admission, and the scheduler loop. To be read in this order:

`request` and `messages` are what goes in and comes out, `batch` is what a runner is handed. `scheduler` is the
loop. A step of it is `checking` and `waiting` (who comes in), `retraction` (room for those who run), `reservation`
and `planning` (what the pass computes), and `results` with `stopping` and `stop_watch` (what became of it), and
`streaming` (who is told of it, as `token_columns`). `running` holds the
decoding requests, as `columns` of flat arrays; beside them, `sampling` and `adjusting` hold what some want.
`kv` is a request's hold on the pools, `state` what all of these share, `audit` whether every id is accounted for,
and `resting` how long there is nothing to do.

Apart from that, `verbs` is what operators do, `pools` what models other than the plainest need, `ranks` several
processes that serve as one, and `agreement` what they have to agree on.
"""

import devicekit.numpy_needed  # noqa: F401  # before whatever would fail without it
from devicekit.scheduling.audit import PoolAudit, PoolsUnbalanced
from devicekit.scheduling.batch import ForwardBatch, Logprobs, ModelLimits, Runner, StepOutput
from devicekit.scheduling.errors import (
    Conflict,
    InvalidOperation,
    InvalidRequest,
    RankLost,
    RanksFailed,
    SchedulingError,
)
from devicekit.scheduling.limits import SchedulerLimits
from devicekit.scheduling.messages import (
    Abort,
    AbortReply,
    Blocker,
    Continue,
    Drain,
    DrainReply,
    Flush,
    FlushReply,
    Operation,
    Output,
    Pause,
    PauseMode,
    PauseReply,
    Reply,
    Selector,
    UpdateReply,
    UpdateWeights,
    UpdateWeightsFromDisk,
    Withdraw,
)
from devicekit.scheduling.request import (
    Finish,
    FinishKind,
    Request,
    SamplingParams,
    TokenLogprob,
    VersionSpan,
)
from devicekit.scheduling.scheduler import Scheduler, Step

__all__ = [
    "Withdraw",
    "Abort",
    "AbortReply",
    "Blocker",
    "Conflict",
    "Continue",
    "Drain",
    "DrainReply",
    "Finish",
    "FinishKind",
    "Flush",
    "FlushReply",
    "ForwardBatch",
    "InvalidOperation",
    "InvalidRequest",
    "Logprobs",
    "ModelLimits",
    "Operation",
    "Output",
    "Pause",
    "PauseMode",
    "PauseReply",
    "PoolAudit",
    "PoolsUnbalanced",
    "RankLost",
    "RanksFailed",
    "Reply",
    "Request",
    "Runner",
    "SamplingParams",
    "Scheduler",
    "SchedulerLimits",
    "SchedulingError",
    "Selector",
    "Step",
    "StepOutput",
    "TokenLogprob",
    "UpdateReply",
    "UpdateWeights",
    "UpdateWeightsFromDisk",
    "VersionSpan",
]
