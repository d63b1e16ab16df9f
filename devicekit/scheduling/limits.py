"""The sizes a scheduler works with."""

from __future__ import annotations

from dataclasses import dataclass

from devicekit.contract.errors import ConfigurationError
from devicekit.contract.text import shown
from devicekit.ranges import MOST_IDS, finite, whole

INVALID_LOGITS = ("refuse", "mark")


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """The sizes a scheduler works with."""

    num_pages: int
    page_size: int = 16  # tokens
    max_running: int = 64  # requests with KV
    max_batch_tokens: int = 512  # tokens per forward pass
    # How many times as long as usual a pass in which requests run may take because of prompts, by what passes are
    # seen to take; None: prompts may have all that ``max_batch_tokens`` leaves.
    max_slowdown: float | None = None
    policy: str = "fcfs"
    prefix_caching: bool = True
    conservativeness: float = 1.0  # scales the share of max_new_tokens that admission sets pages aside for
    window_pages: int | None = None  # of layers with a window, where others have none; None: as the others
    state_snapshots: int = 0  # of recurrent layers, kept for cached prefixes; 0: such prefixes are not cached
    checked: bool = False  # find double frees, and account for every id after every step: raises, and costs
    eviction: str = "lru"  # which cached prefixes go first: see `devicekit.memory.eviction`
    # What becomes of a request whose logits are NaN or infinite: "refuse" ends it with an error, "mark" lets it go
    # on and counts the tokens that are not to be believed.
    invalid_logits: str = "refuse"

    def __post_init__(self) -> None:
        whole("num_pages", self.num_pages, least=1, most=MOST_IDS)
        for name in ("page_size", "max_running", "max_batch_tokens"):
            whole(name, getattr(self, name), least=1)
        if self.window_pages is not None:
            whole("window_pages", self.window_pages, least=1, most=MOST_IDS)
        whole("state_snapshots", self.state_snapshots)
        finite("conservativeness", self.conservativeness, least=0)
        if self.max_slowdown is not None:
            finite("max_slowdown", self.max_slowdown, above=1)
        if self.invalid_logits not in INVALID_LOGITS:
            raise ConfigurationError(
                f"invalid_logits must be {' or '.join(INVALID_LOGITS)}, not {shown(self.invalid_logits)}"
            )
