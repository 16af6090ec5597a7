"""Training on dialogues with a real interpreter, in both forms of calling it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from reopold.config import ModelConfig, OptimizerConfig, RunConfig, SamplingConfig, TrainConfig
from reopold.dialogue_styles import MARK
from reopold.micro.models import build_model, save_model
from reopold.micro.tokenizer import build_tokenizer
from reopold.run_dir import RunDir, read_lines
from reopold.trainer import Trainer

FENCED = ("```python\nprint(", ")\n```")
TAGGED = ('<tool_call>{"name": "python", "arguments": {"code": "', '"}}</tool_call>')
FORMS = {"python": FENCED, "python_call": TAGGED}


def save_untrained(folder: Path) -> None:
    tokenizer = build_tokenizer(
        characters="abcdefghijklmnopqrstuvwxyzE:()'` ",
        fragments=(*FENCED, *TAGGED, MARK, "\n"),
        special=("<|tool|>",),
    )
    save_model(build_model(tokenizer, width=32, layers=1, seed=1), tokenizer, folder)


def write_products(path: Path, environment: str) -> None:
    """Products of digits, asked of the interpreter; its answer is given."""
    begin, end = FORMS[environment]
    with path.open("w") as file:
        for product in [f"{a}*{b}" for a in range(2, 10) for b in range(2, 10)]:
            said = ("assistant", begin + product + end), ("tool", str(eval(product)))
            answer = ("assistant", f"#{eval(product)}")
            line = {
                "id": product,
                "prompt": [{"role": "user", "content": f"{product}="}],
                "answer": str(eval(product)),
                "environment": environment,
                "completion": [{"role": role, "content": text} for role, text in (*said, answer)],
            }
            file.write(json.dumps(line) + "\n")


def train(run: RunDir) -> None:
    config = run.config()
    trainer = Trainer(run, config, "cpu")
    try:
        trainer.train(config.train.steps)
    finally:
        trainer.close()


@pytest.mark.slow
@pytest.mark.parametrize("environment", FORMS)
def test_a_student_that_calls_it_learns_from_what_it_prints(
    environment: str,
    recipe: Callable[..., RunConfig],
    run_dir: Callable[..., RunDir],
    tmp_path: Path,
) -> None:
    """Worked dialogues first, then two steps on its own ones: student = teacher, so that every
    reward is 0 and every score that of the sampler, across what the interpreter printed."""
    save_untrained(tmp_path / "init")
    write_products(tmp_path / "prompts.jsonl", environment)
    shared = {"data": {"train": str(tmp_path / "prompts.jsonl")}, "family": "tools"}
    taught = recipe(
        "sft",
        model=ModelConfig(student=str(tmp_path / "init")),
        sampling=SamplingConfig(prompts_per_step=32, rollouts_per_prompt=1),
        optimizer=OptimizerConfig(lr=1e-2, beta2=0.99, decay="cosine"),
        train=TrainConfig(steps=150, checkpoint_every=150, micro_batch=32),
        **shared,
    )
    first = run_dir(taught, "taught")
    train(first)
    student = str(first.checkpoint(150))
    own = recipe(
        "opd",
        model=ModelConfig(student=student, teacher=student),
        sampling=SamplingConfig(
            prompts_per_step=4, rollouts_per_prompt=2, max_new_tokens=48, max_turns=3
        ),
        train=TrainConfig(steps=2, checkpoint_every=1, micro_batch=4, keep_rollouts=8),
        **shared,
    )
    run = run_dir(own, "own")
    train(run)
    start, after = run.metrics()
    assert start["rollout/calls"] > 0.7 and start["rollout/turns"] > 1.7
    assert start["rollout/broken"] == 0.0 and start["rollout/reward"] > 0.4
    assert abs(start["teacher/reward"]) < 1e-5 and start["rollout/sampler_gap_max"] < 1e-4
    assert abs(after["teacher/reward"]) < 1e-3
    for record in read_lines(run.rollouts_file(1)):
        roles = [message["role"] for message in record["dialogue"]]
        assert roles[:2] == ["assistant", "tool"] or record["calls"] == 0
        printed = [m["content"] for m in record["dialogue"] if m["role"] == "tool"]
        assert record["failed_calls"] or all(any(map(str.isdigit, text)) for text in printed)
