"""Speed and memory, on demand: `make benchmarks` (a quiet machine, about two minutes).

The stages of a training step and the time that things take to start. Medians
and ratios are printed, and kept as JSON in .reopold/benchmarks.json. Never part of the tests.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from reopold.config import DataConfig, ModelConfig, RunConfig, SamplingConfig, TrainConfig
from reopold.micro.build import build_suite
from reopold.run_dir import RunDir
from reopold.study_config import MicroConfig
from reopold.trainer import Trainer
from tests.benchmarks.record import keep


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
            "step": stages_of_a_step(suite, Path(folder), options.repetitions),
            "checkpoint": checkpoints(Path(folder), options.repetitions),
            "startup": startup(options.repetitions),
        }
    keep("benchmarks", found, options.repetitions)
    return 0


def stages_of_a_step(suite: Path, folder: Path, repetitions: int) -> dict[str, float]:
    """Median seconds of each stage of a distillation step of 32 x 4 rollouts."""
    config = RunConfig(
        name="step",
        method="opd",
        model=ModelConfig(student=str(suite / "student-init"), teacher=str(suite / "teacher-init")),
        data=DataConfig(train=str(suite / "micro_maths" / "train.jsonl")),
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


def checkpoints(folder: Path, repetitions: int) -> dict[str, float]:
    """Median seconds that a checkpoint of a 13M model costs its step: written behind the training
    (what is left is the copy in memory), or waited for; and as shares of the step."""
    suite = folder / "larger"
    sizes = {"student_width": 512, "student_layers": 4, "teacher_width": 64, "teacher_layers": 1}
    build_suite(
        suite,
        MicroConfig(train_problems=500, test_problems=10, validation_problems=10, **sizes),
    )
    found = {}
    for behind in (True, False):
        config = RunConfig(
            name="saves",
            method="opd",
            model=ModelConfig(
                student=str(suite / "student-init"), teacher=str(suite / "teacher-init")
            ),
            data=DataConfig(train=str(suite / "micro_maths" / "train.jsonl")),
            sampling=SamplingConfig(prompts_per_step=16),
            train=TrainConfig(
                steps=100, micro_batch=32, save_every=1, background_saves=behind, keep_rollouts=0
            ),
        )
        run = RunDir(folder / f"saves-{behind}").create(config)
        trainer = Trainer(run, run.config(), "cpu")
        trainer.train(2 * repetitions + 2)
        trainer.close()
        lines = run.metrics()[2:]  # the first two wait for nothing before them
        blocked = median(line["perf/seconds_checkpoint"] for line in lines)
        step = median(line["perf/seconds_total"] for line in lines)
        how = "behind the training" if behind else "waited for"
        found |= {f"{how}: seconds": blocked, f"{how}: share of a step": blocked / step}
        found[f"{how}: seconds of the step itself"] = step
    events = [e for e in run.events() if e["kind"] == "checkpoint"]
    found["seconds of writing"] = median(event["seconds"] for event in events)
    size = sum(p.stat().st_size for p in run.resume_points()[-1].rglob("*") if p.is_file())
    return {**found, "MB": size / 1e6}


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


if __name__ == "__main__":
    sys.exit(main())
