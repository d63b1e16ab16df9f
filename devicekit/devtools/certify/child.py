"""Runs one part in this process, which is its own: what crashes or hangs here costs this part alone."""

from __future__ import annotations

import faulthandler
import importlib.util
import json
import signal
import sys
import traceback
from pathlib import Path

from devicekit.contract.errors import DeviceKitError
from devicekit.devtools.certify.part import PARTS, Part
from devicekit.devtools.certify.record import Findings, Skipped, Status

_EARLIER = 2.0  # seconds before the limit at which every thread's stack is written


def main(request: Path) -> None:
    """Run what a request asks for, a JSON file that `running` wrote."""
    asked = json.loads(request.read_text(encoding="utf-8"))
    part = next((one for one in PARTS if one.name == asked["part"]), None)
    part = part or Part(asked["part"], "", asked["seconds"], module=asked["module"])
    # Whoever was started in the background of a shell is born deaf to it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(1.0, asked["seconds"] - _EARLIER))
    findings = Findings(part.name, Path(asked["outcome"]))
    try:
        missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
        if missing:
            raise Skipped(f"not installed: {', '.join(missing)}")
        from devicekit.devtools.certify.ground import Ground  # imports torch, which may crash

        ground = Ground(asked["spec"], asked["simulate"], Path(asked["scratch"]), asked["seconds"])
        part.load()(ground, findings)
    except Skipped as reason:
        findings.end(Status.SKIPPED, str(reason))
    except DeviceKitError as error:
        traceback.print_exc()
        findings.end(Status.FAILED, f"{type(error).__name__}: {error}")
    except Exception as error:
        traceback.print_exc()
        findings.end(Status.FAILED, f"{type(error).__name__}: {error}"[:2000])
    else:
        findings.judge()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
