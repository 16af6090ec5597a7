"""One whole training step (sample, score, update) beside TRL's trainers.

`make benchmarks-step` (a quiet machine, about a minute): the micro suite's untrained models,
32 prompts x 4 rollouts of at most 48 tokens, one optimiser update, float32, one thread. Ours keeps
its activations from scoring to the update (`train.keep_activations`, off by default). Our `opd`
stands beside TRL's IWOPDTrainer without its weights (gamma 0, which is the same gradient:
docs/conformance.md), our `grpo` beside its GRPOTrainer. They take turns of a few steps in one
process, and the first steps of a turn are not measured; what is printed are medians of CPU
seconds. Kept in .reopold/benchmarks-step.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.iw_opd import IWOPDConfig, IWOPDTrainer

from reopold.answers.marked import answer_reward
from reopold.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
)
from reopold.data.prompts import load_prompts
from reopold.data.tokenizers import load_tokenizer
from reopold.engines.hf import load_model
from reopold.micro.build import build_suite
from reopold.provenance import git_commit, hardware, versions
from reopold.run_dir import RunDir
from reopold.study_config import MicroConfig
from reopold.trainer import Trainer

PROMPTS, SAMPLES, NEW_TOKENS = 32, 4, 48
ROLLOUTS = PROMPTS * SAMPLES
#: So small that the policies, hence the lengths of their samples, stay where they started.
LEARNING_RATE = 1e-6
#: Steps at the start of every turn that are not measured: caches, TRL's set-up of a training run.
WARM_UP = 2


@dataclass(frozen=True)
class Measured:
    """One step."""

    cpu_seconds: float
    tokens: int


#: Runs that many steps, and says what each took.
Turn = Callable[[int], list[Measured]]


def ours(suite: Path, folder: Path, method: Any, micro_batch: int) -> Turn:
    config = RunConfig(
        name=method,
        method=method,
        model=ModelConfig(student=str(suite / "student-init"), teacher=str(suite / "teacher-init")),
        data=DataConfig(train=str(suite / "micro_maths" / "train.jsonl")),
        sampling=SamplingConfig(
            prompts_per_step=PROMPTS, rollouts_per_prompt=SAMPLES, max_new_tokens=NEW_TOKENS
        ),
        optimizer=OptimizerConfig(lr=LEARNING_RATE),
        train=TrainConfig(steps=1000, micro_batch=micro_batch, keep_activations=True),
    )
    run = RunDir(folder / f"ours-{method}").create(config)
    trainer = Trainer(run, run.config(), "cpu")

    def turn(steps: int) -> list[Measured]:
        found = []
        for _ in range(steps):
            started, before = time.process_time(), trainer.tokens
            trainer._one_step()
            found.append(Measured(time.process_time() - started, trainer.tokens - before))
        return found

    return turn


@dataclass
class StepClock(TrainerCallback):
    """Measures from the end of a step to that of the next: a Trainer fetches a step's prompts
    before it calls `on_step_begin`, and nothing that it does may fall between two steps."""

    tokens: Callable[[], int]
    found: list[Measured] = field(default_factory=list)
    started: float = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.found, self.started = [], time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        spent = time.process_time() - self.started
        self.found.append(Measured(spent, self.tokens()))
        self.started = time.process_time()


def their_settings(folder: Path, micro_batch: int) -> dict[str, Any]:
    """What both of TRL's configs share; nothing is logged, saved, evaluated or recomputed."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": ROLLOUTS // micro_batch,
        "num_generations": SAMPLES,
        "max_completion_length": NEW_TOKENS,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def turns_of(trainer: Any, mask: Callable[[dict[str, Any]], Any]) -> Turn:
    """Short training runs of one trainer, which keeps its model from run to run.

    Args:
        mask: of a slice of the trainer's buffer, true where a token was sampled.
    """
    clock = StepClock(lambda: sum(int(mask(part).sum()) for part in trainer._buffered_inputs))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)

    def turn(steps: int) -> list[Measured]:
        trainer.args.max_steps = steps
        trainer.train()
        if not all(bool(p.isfinite().all()) for p in trainer.model.parameters()):
            raise RuntimeError(f"{type(trainer).__name__} trained its weights to nan or inf")
        return clock.found

    return turn


def trl_iw_opd(suite: Path, folder: Path, micro_batch: int) -> Turn:
    student = str(suite / "student-init")
    trainer = IWOPDTrainer(
        model=load_model(student, dtype="float32", device="cpu"),
        teacher_model=load_model(str(suite / "teacher-init"), dtype="float32", device="cpu"),
        args=IWOPDConfig(
            **their_settings(folder / "iw_opd", micro_batch),
            distillation_objective="iw_opd",
            iw_opd_gamma=0.0,
            lmbda=1.0,
            beta=1.0,
            loss_top_k=1,
            reverse_kl_top_1_mode="sampled",
        ),
        train_dataset=Dataset.from_list(
            [
                {"messages": prompt.messages}
                for prompt in load_prompts(str(suite / "micro_maths" / "train.jsonl"))
            ]
        ),
        processing_class=load_tokenizer(student),
    )
    # Its loss would be divided by the number of labels that the data came with, which is 0 for
    # prompts alone: nan after one update. So it divides by its own batch's tokens, as ours does.
    trainer.model_accepts_loss_kwargs = False
    return turns_of(trainer, lambda part: part["labels"] != -100)


def trl_grpo(suite: Path, folder: Path, micro_batch: int) -> Turn:
    student = str(suite / "student-init")

    def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        texts = [messages[0]["content"] for messages in completions]
        return [answer_reward(text, right) for text, right in zip(texts, answer, strict=True)]

    trainer = GRPOTrainer(
        model=load_model(student, dtype="float32", device="cpu"),
        reward_funcs=reward,
        args=GRPOConfig(**their_settings(folder / "grpo", micro_batch), loss_type="grpo"),
        train_dataset=Dataset.from_list(
            [
                {"prompt": prompt.messages, "answer": prompt.answer}
                for prompt in load_prompts(str(suite / "micro_maths" / "train.jsonl"))
            ]
        ),
        processing_class=load_tokenizer(student),
    )
    return turns_of(trainer, lambda part: part["completion_mask"])


def measure(turns: dict[str, Turn], rounds: int, steps: int) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = {name: [] for name in turns}
    for i in range(rounds):
        for name, turn in turns.items():
            found[name] += turn(WARM_UP + steps)[WARM_UP:]
            say(f"  round {i + 1} of {rounds}: {name}")
    return found


def summary(steps: list[Measured]) -> dict[str, float]:
    seconds = median(step.cpu_seconds for step in steps)
    return {
        "cpu_seconds": seconds,
        "rollouts_per_cpu_second": ROLLOUTS / seconds,
        "tokens_per_rollout": sum(step.tokens for step in steps) / len(steps) / ROLLOUTS,
        "tokens_per_cpu_second": median(step.tokens / step.cpu_seconds for step in steps),
    }


def show(rows: dict[str, dict[str, float]], pairs: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Print the table and the ratios; give the ratios."""
    print(f"\n{'':20} {'CPU s':>8} {'rollouts/s':>11} {'tokens/rollout':>15} {'tokens/s':>9}")
    for name, row in rows.items():
        print(
            f"{name:20} {row['cpu_seconds']:8.3f} {row['rollouts_per_cpu_second']:11.1f} "
            f"{row['tokens_per_rollout']:15.2f} {row['tokens_per_cpu_second']:9.0f}"
        )
    ratios = {}
    for title, (mine, other) in pairs.items():
        ratios[title] = {key: rows[mine][key] / rows[other][key] for key in rows[mine]}
        print(
            f"{title}: {ratios[title]['rollouts_per_cpu_second']:.2f}x the rollouts and "
            f"{ratios[title]['tokens_per_cpu_second']:.2f}x the tokens per CPU second, "
            f"{ratios[title]['tokens_per_rollout']:.2f}x the tokens per rollout"
        )
    return ratios


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.step", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="measured steps of a turn")
    parser.add_argument("--micro-batch", type=int, default=128, help="ours")
    parser.add_argument("--trl-micro-batch", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, suite = Path(name), Path(name) / "micro"
        build_suite(
            suite, MicroConfig(train_problems=500, test_problems=10, validation_problems=10)
        )
        turns = {
            "reopold opd": ours(suite, folder, "opd", options.micro_batch),
            "TRL IWOPDTrainer": trl_iw_opd(suite, folder, options.trl_micro_batch),
            "reopold grpo": ours(suite, folder, "grpo", options.micro_batch),
            "TRL GRPOTrainer": trl_grpo(suite, folder, options.trl_micro_batch),
        }
        found = measure(turns, options.rounds, options.steps)
    rows = {name: summary(steps) for name, steps in found.items()}
    ratios = show(
        rows,
        {
            "opd over IWOPDTrainer": ("reopold opd", "TRL IWOPDTrainer"),
            "grpo over GRPOTrainer": ("reopold grpo", "TRL GRPOTrainer"),
        },
    )
    record = {
        "commit": git_commit(),
        "versions": versions(),
        "hardware": hardware("cpu"),
        "options": vars(options),
        "steps": rows,
        "ratios": ratios,
    }
    out = Path(os.environ.get("REOPOLD_HOME", ".reopold")) / "benchmarks-step.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2), encoding="utf-8")
    print(f"\nkept in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
