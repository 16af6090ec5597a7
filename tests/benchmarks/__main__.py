"""Speed and memory, on demand: `make benchmarks` (a quiet machine, about two minutes).

Everything that is compared runs side by side in one process, in interleaved repetitions; medians
and ratios are printed, and kept as JSON in .reopold/benchmarks.json. Never part of the tests.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from reopold.config import (
    DataConfig,
    MicroConfig,
    ModelConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
)
from reopold.data.prompts import load_prompts
from reopold.data.tokenizers import render
from reopold.engines.hf import HFEngine
from reopold.micro.build import build_suite
from reopold.provenance import git_commit, hardware, versions
from reopold.rollouts import SamplingParams
from reopold.run_dir import RunDir
from reopold.trainer import Trainer
from tasks.home import home

NEW_TOKENS = 40


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder) / "micro"
        build_suite(
            suite, MicroConfig(train_problems=500, test_problems=10, validation_problems=10)
        )
        found = {
            "engine": engine_against_generate(suite, options.repetitions),
            "step": stages_of_a_step(suite, Path(folder), options.repetitions),
            "startup": startup(options.repetitions),
        }
    record = {
        "commit": git_commit(),
        "versions": versions(),
        "hardware": hardware("cpu"),
        "repetitions": options.repetitions,
        **found,
    }
    out = home() / "benchmarks.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2), encoding="utf-8")
    for name, rows in found.items():
        print(f"\n{name}")
        for key, value in rows.items():
            print(f"  {key:44} {value:10.3f}")
    print(f"\nkept in {out}")
    return 0


def engine_against_generate(suite: Path, repetitions: int) -> dict[str, float]:
    """CPU seconds of sampling 32 prompts x 4 with our engine and with `model.generate`.

    Untrained models, EOS suppressed by length alone: both write exactly NEW_TOKENS tokens a row.
    """
    engine = HFEngine.load(suite / "student-init")
    prompts = load_prompts(str(suite / "train.jsonl"))[:32]
    ids = [render(engine.tokenizer, p.messages) for p in prompts for _ in range(4)]
    texts = [engine.tokenizer.decode(row) for row in ids]
    padded = engine.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    engine.tokenizer.eos_token = "<|user|>"  # hardly ever sampled: rows run to their full length
    tokens: list[int] = []

    def ours() -> None:
        rollouts = engine.generate(ids, SamplingParams(NEW_TOKENS), seeds=range(len(ids)))
        tokens.append(sum(len(r.response_ids) for r in rollouts))

    def theirs() -> None:
        engine.model.generate(
            **padded,
            do_sample=True,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )

    mine, other = interleaved([ours, theirs], repetitions)
    our_rate, their_rate = median(tokens) / mine, len(ids) * NEW_TOKENS / other
    return {
        "engine, tokens per CPU second": our_rate,
        "model.generate, tokens per CPU second": their_rate,
        "ratio": our_rate / their_rate,
    }


def stages_of_a_step(suite: Path, folder: Path, repetitions: int) -> dict[str, float]:
    """Median seconds of each stage of a distillation step of 32 x 4 rollouts."""
    config = RunConfig(
        name="step",
        method="opd",
        model=ModelConfig(student=str(suite / "student-init"), teacher=str(suite / "teacher-init")),
        data=DataConfig(train=str(suite / "train.jsonl")),
        sampling=SamplingConfig(),
        train=TrainConfig(steps=100, micro_batch=32),
    )
    run = RunDir(folder / "run").create(config)
    trainer = Trainer(run, run.config(), "cpu")
    for _ in range(repetitions + 1):
        trainer._one_step()
    lines = run.metrics()[1:]
    names = [name for name in lines[0] if name.startswith("perf/")]
    return {name: median(line[name] for line in lines) for name in names}


def startup(repetitions: int) -> dict[str, float]:
    """Seconds until the command line and a trainer's imports are ready."""
    commands: dict[str, list[str]] = {
        "reopold --help": [str(Path(sys.executable).with_name("reopold")), "--help"],
        "import of the trainer": [sys.executable, "-c", "import reopold.trainer"],
        "import of the evaluation": [sys.executable, "-c", "import evals.harness.task"],
    }
    found = {}
    for name, command in commands.items():
        seconds = []
        for _ in range(min(repetitions, 3)):
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - started)
        found[name] = median(seconds)
    return found


def interleaved(functions: list[Callable[[], Any]], repetitions: int) -> list[float]:
    """Median CPU seconds of each function; they take turns, after one unmeasured round."""
    seconds: list[list[float]] = [[] for _ in functions]
    for repetition in range(repetitions + 1):
        for function, measured in zip(functions, seconds, strict=True):
            started = time.process_time()
            function()
            if repetition:
                measured.append(time.process_time() - started)
    return [median(measured) for measured in seconds]


if __name__ == "__main__":
    sys.exit(main())
