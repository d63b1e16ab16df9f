"""What the fixer makes of a piece of code, for tests."""

from __future__ import annotations

from devicekit.devtools.audit.rewrite import rewrite
from devicekit.devtools.audit.rules import analyse

HERE = "devicekit.current_device()"


def fixed(code: str, *, unsafe: bool = False, device_name: str | None = None) -> str:
    edits = [one for one in analyse(code, "x.py", device_name).edits if one.safe or unsafe]
    return rewrite(code, edits)[0]


def inside(body: str) -> str:
    """Statements in a function of a file that has torch."""
    lines = "".join(f"    {line}\n" for line in body.split("\n"))
    return f"import torch\n\nZERO = torch.zeros(1)\n\ndef f(x, s, i, rank):\n{lines}"
