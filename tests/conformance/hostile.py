"""Hostile backends, made from what a backend can do to the process around it and when it does it.

A case is a deed and a phase. The deed is Python that runs in the worker; the phase says where it stands in the
backend's code. Every case is a fault: none of them is a thing that a backend may do.
"""

from __future__ import annotations

import itertools
import random
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

# Deeds that end, stall or foul the process, or try to speak in the suite's place.
DEEDS = {
    "exits": "import sys; sys.exit(0)",
    "exits at once": "import os; os._exit(0)",
    "aborts": "import os; os.abort()",
    "kills itself": "import os; os.kill(os.getpid(), 9)",
    "segfaults": "import ctypes; ctypes.string_at(0)",
    "hangs": "import time; time.sleep(3600)",
    "hangs and ignores signals": "import signal, time\n"
    "for n in signal.valid_signals():\n"
    "    try: signal.signal(n, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\n"
    "time.sleep(3600)",
    "spins": "while True: pass",
    "interrupts": "raise KeyboardInterrupt",
    "raises 50 MB": "raise RuntimeError('x' * 50_000_000)",
    "raises lone surrogates": "raise RuntimeError('\\ud800\\udfff \\x00\\x1b[2J\\x1f')",
    "raises what cannot be shown": "class E(Exception):\n"
    "    def __str__(self): raise SystemExit(0)\n"
    "    __repr__ = __str__\n"
    "raise E()",
    "raises the suite's own n/a": "from devicekit_conformance.context import NotApplicable\n"
    "raise NotApplicable('all is well')",
    "raises the suite's own not-run": "from devicekit_conformance.context import NotRun\nraise NotRun('later')",
    "closes descriptors": "import os; os.closerange(3, 4096)",
    "closes every descriptor": "import os; os.closerange(0, 4096)",
    "floods": "import os\nwhile True: os.write(1, b'x' * (1 << 20))",
    "forks and goes on": "import os; os.fork()",
    "ends its keeper": "import os; os.kill(os.getppid(), 9)",
    "ends the fork server": "import os\n"
    "parent = int(open(f'/proc/{os.getppid()}/stat').read().rsplit(')', 1)[1].split()[1])\n"
    "os.kill(parent, 9)",
    "writes a verdict to every descriptor": "import os, json\n"
    "for fd in range(3, 256):\n"
    "    for text in (json.dumps({'id': 'DK-LOAD-001', 'status': 'pass'}), '1\\x1fanswer\\x1fpass'):\n"
    "        try: os.write(fd, text.encode() + b'\\n')\n"
    "        except OSError: pass",
    "answers by the suite's own frames": "import sys\n"
    "frame = sys._getframe()\n"
    "while frame is not None:\n"
    "    if 'say' in frame.f_locals and 'rules' in frame.f_locals:\n"
    "        f = frame.f_locals\n"
    "        f['say'](f['number'], 'answer', f['argument'], 'pass', '0', '', '', '')\n"
    "    frame = frame.f_back",
    "answers and ends": "import sys, os\n"
    "frame = sys._getframe()\n"
    "while frame is not None:\n"
    "    if 'say' in frame.f_locals and 'rules' in frame.f_locals:\n"
    "        f = frame.f_locals\n"
    "        f['say'](f['number'], 'answer', f['argument'], 'pass', '0', '', '', '')\n"
    "        os._exit(0)\n"
    "    frame = frame.f_back",
    "patches json": "import json\njson.dumps = lambda *a, **k: {}\njson.loads = lambda *a, **k: {}",
    "patches os": "import os\nos._exit = lambda code: None\nos.getpid = lambda: 1",
    "patches sys.exit": "import sys\nsys.exit = lambda *a: None",
    "patches atexit": "import atexit\natexit.register = lambda f, *a, **k: f",
    "patches the clock": "import time\ntime.monotonic = time.perf_counter = lambda: 0.0",
    "patches expect": "import devicekit_conformance.context as c\nc.expect = c.fail = lambda *a: None",
    "patches Failure": "import devicekit_conformance.worker as w\nw.Failure = w.NotApplicable",
    "patches examine": "import devicekit_conformance.worker as w\nw.examine = lambda *a: ('pass', '', 0.0, '')",
    "patches a check's code": "from devicekit_conformance.rulebook import rulebook\n"
    "for rule in rulebook().values(): rule.check.__code__ = (lambda ctx: None).__code__",
    "rewrites statuses": "from devicekit_conformance.outcomes import Status\n"
    "for one in Status: one._value_ = 'pass'",
    "stops itself": "import os; os.kill(os.getpid(), 19)",
    "stops its keeper and hangs": "import os, time; os.kill(os.getppid(), 19); time.sleep(3600)",
    "talks without end": "import sys\n"
    "frame, say = sys._getframe(), None\n"
    "while frame is not None and say is None:\n"
    "    say, frame = frame.f_locals.get('say'), frame.f_back\n"
    "while say is not None: say(0, 'note', 'x' * 1000)",
    "starts a daemon": "import subprocess, sys\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'],\n"
    "    start_new_session=True)",
    "daemonises twice": "import os, time\n"
    "if os.fork() == 0:\n"
    "    os.setsid()\n"
    "    if os.fork() == 0: time.sleep(3600)\n"
    "    os._exit(0)\n"
    "os.wait()",
}
# Where a deed stands: at import, when the class is made, in the first hook that is called, in one that only some
# requirements call, and when the interpreter ends.
PHASES = ("import", "construction", "first hook", "mid-requirement", "at exit")
# What a worker never gets to, since it is killed: seen only where a process of the backend's ends by itself.
AT_EXIT = ("hangs", "aborts", "segfaults", "spins", "kills itself", "hangs and ignores signals")

_SOURCE = """
from devicekit.contract import MemoryInfo, hookimpl
from devicekit.contract.manifest import Manifest
from devicekit_cpu import Backend as Cpu

def deed():
{deed}

{at_import}

class Mine(Cpu):
    manifest = Manifest.parse({{"backend": {{
        "name": "mine", "device_type": "cpu", "contract": ">=1.0,<2", "collective_backend": "gloo",
        "noop": ["synchronize", "set_index"], "emulated": ["empty_cache", "memory_info"],
        "capabilities": ["driver_memory", "ipc", "rng_state", "unified_memory"], "indexed": False,
        "host": True}}}})

    def __init__(self):
        {at_construction}

    @hookimpl
    def is_available(self):
        {at_first_hook}
        return True

    @hookimpl
    def memory_info(self, index):
        {mid}
        return super().memory_info(index)
"""


@dataclass(frozen=True)
class Case:
    """One hostile backend."""

    deed: str
    phase: str

    @property
    def source(self) -> str:
        """The module that holds it, with the class ``Mine``."""
        call = dict.fromkeys(PHASES, "pass") | {self.phase: "deed()"}
        if self.phase == "at exit":
            call["import"] = "import atexit; atexit.register(deed)"
        return _SOURCE.format(
            deed=textwrap.indent(DEEDS[self.deed], "    "),
            at_import=call["import"],
            at_construction=call["construction"],
            at_first_hook=call["first hook"],
            mid=call["mid-requirement"],
        )

    def __str__(self) -> str:
        return f"{self.deed}, {self.phase}"


def every_case() -> list[Case]:
    """All of them."""
    found = [Case(*pair) for pair in itertools.product(DEEDS, PHASES)]
    return [one for one in found if one.phase != "at exit" or one.deed in AT_EXIT]


def sample(seed: int, size: int) -> Sequence[Case]:
    """Some of them, each phase as often as the others."""
    chosen = random.Random(seed)
    by_phase = [[one for one in every_case() if one.phase == phase] for phase in PHASES]
    for cases in by_phase:
        chosen.shuffle(cases)
    return [one for row in itertools.zip_longest(*by_phase) for one in row if one is not None][:size]
