"""One engine on two ranks under torchrun: a real model, updated while one rank cannot, and then while all can."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from devicekit.engine import Engine

# Relative paths lead somewhere else on rank 1: "v2" is there on rank 0 only.
PROGRAM = """
import os, sys, torch
torch.set_num_threads(1)
from devicekit.commands.ranks import main
os.chdir(sys.argv[1] if os.environ["RANK"] == "0" else "/")
sys.exit(main(sys.argv[2:]))
"""


def test_a_model_on_two_ranks_says_what_it_says_on_one_and_keeps_its_weights_together(
    checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = checkpoints
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    arguments = ["--model", str(first), "--prompt", "Once upon", "--device", "cpu", "--timeout", "60"]
    arguments += ["--update", second.name, "--update", str(second)]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*run, str(program), str(second.parent), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    before, refusal, unchanged, update, after = done.stdout.splitlines()
    assert refusal.startswith("update: rank 1: ")
    assert "v2" in refusal
    assert unchanged == before
    assert update == "update: Weights updated to version 'default+1'."

    engine = Engine.open(first, "cpu")
    texts = [engine.generate(["Once upon"], max_new_tokens=16, temperature=0)[0].text]
    engine.update_weights_from_disk(second)
    texts.append(engine.generate(["Once upon"], max_new_tokens=16, temperature=0)[0].text)
    assert [before, after] == [f"Once upon{text}" for text in texts]
    assert before != after
