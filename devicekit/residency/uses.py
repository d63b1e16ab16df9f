"""What a pipeline declares: its stages, and which component each of them uses how."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class ComponentUse:
    """One declared use of a component. Two uses are the same if component and phase are.

    A use's component is on the device while the use lasts, and leaves it afterwards if its mode says so, unless
    the next use is of the same component or one of the flags keeps it.
    """

    component: str
    phase: str = ""
    start_at_stage_entry: bool = True  # False: the stage calls begin_use itself
    target_dtype: torch.dtype | None = None  # of floating-point tensors, while in use
    allow_prefetch: bool = True
    prefetch_after_request: bool = False  # bring it back early for the next request
    keep_after_warmup: bool = False
    keep_after_request: bool = False
    release_after_use: bool = True  # False: it stays until the request ends
    memory_intensive: bool | None = None  # whether to empty the cache after it; None: by measured bytes
    skip_empty_cache_on_release: bool = False

    def same(self, other: ComponentUse | None) -> bool:
        """Whether ``other`` is the same use."""
        return other is not None and (self.component, self.phase) == (other.component, other.phase)


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of a pipeline and the uses it makes, in order.

    With one use that starts at entry, the stage's components are managed for it; with several, the stage begins
    and ends each.
    """

    name: str
    uses: tuple[ComponentUse, ...] = ()

    @property
    def automatic(self) -> ComponentUse | None:
        """The use that begins with the stage, if there is one."""
        if len(self.uses) == 1 and self.uses[0].start_at_stage_entry:
            return self.uses[0]
        return None
