"""The hour of whoever writes a backend and certifies it in CI, by what its page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import CHECKOUT, Block, blocks_of
from tests.docs.environment import Environment

PAGE = CHECKOUT / "docs" / "tutorials" / "backend.md"
SECONDS = 1800.0  # for one command; two minutes on a machine with nothing else to do


def lines(block: Block) -> list[str]:
    return [line for line in block.text.splitlines() if line.strip()]


@pytest.mark.thorough
def test_who_certifies_a_backend_sees_what_the_page_says(tmp_path: Path) -> None:
    environment = Environment(tmp_path, SECONDS)
    blocks = blocks_of(PAGE)
    fresh, mistaken, mended, checked = (block for block in blocks if block.language == "bash")
    [told] = (block for block in blocks if block.language == "text")

    *_, listed, judged = [environment.succeed(line) for line in lines(fresh)]
    assert "acme" in listed
    assert "acme: CONFORMANT" in judged.splitlines()[-1]
    package = environment.scratch / "devicekit-acme"
    assert (package / ".github" / "workflows" / "conformance.yml").exists()

    mistake, judge = lines(mistaken)
    environment.succeed(mistake)
    done = environment.run(judge)
    assert done.returncode == 1
    assert told.text in done.stdout
    assert "acme: NON-CONFORMANT" in done.stdout

    mend, judge, rules = lines(mended)
    environment.succeed(mend)
    assert "acme: CONFORMANT" in environment.succeed(judge)
    assert {"report.json", "report.html", "junit.xml"} <= {
        path.name for path in (environment.scratch / "out").iterdir()
    }
    assert "synchronize() MUST NOT return before" in environment.succeed(rules)

    for line in lines(checked):
        environment.succeed(line)
