"""The scheduler: requests, the running batch, admission, and the loop that runs forward passes.

In the order in which the modules are best read:

- `request` and `messages`: what goes in and what comes out. `batch`: what a runner gets and returns.
- `scheduler`: the loop. A step takes requests in (`checking`, `waiting`, `gate`), makes room for the running ones
  (`retraction`), plans the pass (`planning`, `reservation`), lays it out as arrays (`batch_building`), and applies
  its result (`results`, `stopping`, `stop_watch`, `streaming`, `token_columns`).
- `requests`: the life of every request. `running`: those that decode, as `columns` of flat arrays. `sampling`,
  `adjusting`, `constraining` and `scoring`: what only some requests ask for.
- `kv_cache`: rows, pages and cached prefixes. `audit`: whether every id is accounted for.
- `state`: what all of these share, with `deadlines`, `participants`, `withdrawals` and `staged` as its smaller
  parts. `resting`: how long there is nothing to do.
- `verbs`: what operators do. `ranks`: several processes that serve as one.

`agreement`, `kv` and `pools` are old names, kept for one release.
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
