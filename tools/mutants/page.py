"""The page that says how many mutants the tests noticed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tools.mutants.equivalent import EQUIVALENT

NOT_JUDGED = "not judged"
"""The outcome of a mutant whose tests take too long without it as well."""

SURVIVED = "survived"

_TOP = """# Mutants

Made by `make mutants`: the code is changed in one place at a time (a comparison's boundary, and for or,
arithmetic, a constant, a condition turned round, None returned, a statement removed), and the tests that run the
changed line run, the fastest first, as many as fit into a budget of seconds. A mutant is killed when one of
them fails, crashes or hangs. *Explained* ones are the same program in other words, or differ in speed alone; each
stands in `tools/mutants/equivalent.py` with its reason.
"""


def page(rows: Sequence[Mapping[str, object]], total: int, seed: int) -> str:
    """Markdown from what was judged."""
    slow = sum(row["outcome"] == NOT_JUDGED for row in rows)
    rows = [row for row in rows if row["outcome"] != NOT_JUDGED]
    areas = list(dict.fromkeys(str(row["area"]) for row in rows))
    sampled = "all of them" if len(rows) + slow >= total else f"a sample (seed {seed})"
    sampled += f"; of {slow} more the tests took too long without any change as well" if slow else ""
    lines = [_TOP, f"{total} mutants, of which {len(rows)} were judged: {sampled}.\n"]
    lines += ["| area | judged | killed | explained | survived | score |", "|---|---|---|---|---|---|"]
    for area in sorted(areas):
        lines.append(_line(area, [row for row in rows if row["area"] == area]))
    lines.append(_line("**all**", rows))
    left = [
        row for row in rows if row["outcome"] in (SURVIVED, "not reached") and row["name"] not in EQUIVALENT
    ]
    if left:
        lines += [
            "\n## Survivors\n",
            *(f"- line {one['line']}, {one['outcome']}: `{one['name']}`" for one in left),
        ]
    explained = sorted({str(row["name"]) for row in rows if row["name"] in EQUIVALENT})
    if explained:
        lines += ["\n## Explained\n", *(f"- `{name}`: {EQUIVALENT[name]}" for name in explained)]
    return "\n".join(lines) + "\n"


def _line(area: str, rows: Sequence[Mapping[str, object]]) -> str:
    left = [row for row in rows if row["outcome"] in (SURVIVED, "not reached")]
    explained = sum(row["name"] in EQUIVALENT for row in left)
    survived = len(left) - explained
    killed = len(rows) - len(left)
    score = f"{100 * killed / max(1, len(rows) - explained):.1f} %"
    return f"| {area} | {len(rows)} | {killed} | {explained} | {survived} | {score} |"
