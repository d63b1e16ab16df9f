"""lm-eval: a task that generates and one that asks for log-likelihoods, end to end, over data made here."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

QUESTIONS = [{"question": f"Page {at} is", "answer": f" {at}", "wrong": " kept"} for at in range(4)]
COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
num_fewshot: 0
"""
GENERATE = """
task: pages_generate
output_type: generate_until
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8, temperature: 0}}
metric_list: [{{metric: exact_match}}]
"""
CHOOSE = """
task: pages_choose
output_type: multiple_choice
doc_to_choice: ["{{{{answer}}}}", "{{{{wrong}}}}"]
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""


def run(kind: str, task: str) -> list[dict[str, Any]]:
    """The samples of a task."""
    model = (
        f"model=small,base_url={os.environ['BASE_URL']}/v1/completions,tokenizer={os.environ['MODEL']},"
        "tokenizer_backend=huggingface,tokenized_requests=True,max_retries=1"
    )
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data.json")
        data.write_text("\n".join(map(json.dumps, QUESTIONS)))
        Path(folder, "task.yaml").write_text((task + COMMON).format(data=data))
        found = lm_eval.simple_evaluate(
            model=kind,
            model_args=model,
            tasks=[task.split()[1]],
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
        )
    samples: list[dict[str, Any]] = found["samples"][task.split()[1]]
    assert len(samples) == len(QUESTIONS), samples
    return samples


def generation():
    for sample in run("local-completions", GENERATE):
        assert isinstance(sample["resps"][0][0], str), sample
        assert "\n" not in sample["resps"][0][0], sample


def log_likelihood():
    for sample in run("local-completions", CHOOSE):
        for told in sample["filtered_resps"]:
            assert float(told[0]) < 0, sample


for name, check in (("completion", generation), ("log probabilities", log_likelihood)):
    try:
        check()
        wrong = ""
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"[:200]
    print(json.dumps({"check": name, "wrong": wrong}), flush=True)
