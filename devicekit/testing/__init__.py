"""The simulated accelerator and fault injection, for tests without hardware."""

from __future__ import annotations

from devicekit.testing.clock import Clock, MockClock, SystemClock
from devicekit.testing.config import SimConfig
from devicekit.testing.install import enable, simulation
