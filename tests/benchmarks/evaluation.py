"""Grading, sandbox and evaluation, measured on demand: `make benchmarks-evaluation` (2 minutes).

Answers graded a second, programs run a second, and how much longer an evaluation takes than bare
sampling of the same responses. Medians, kept as JSON in .reopold/benchmarks-evaluation.json.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from evals.benchmarks import find
from evals.benchmarks.problems import load_problems
from evals.evaluation import evaluate_checkpoint
from evals.grading import grade_many
from evals.harness.adapter import sample_seed
from reopold.config import EvaluationConfig
from reopold.data.tokenizers import render
from reopold.engines.hf import HFEngine
from reopold.micro.build import build_suite
from reopold.rollouts import SamplingParams
from reopold.sandbox import run_program
from reopold.study_config import MicroConfig
from tests.benchmarks.record import keep

ANSWERS = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.evaluation")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "grading": grading(),
        "sandbox": sandbox(options.repetitions),
        "evaluation": overhead(options.repetitions),
    }
    keep("benchmarks-evaluation", found, options.repetitions)
    return 0


def grading() -> dict[str, float]:
    """Wall-clock of 10,000 different maths answers, the workers' start included."""
    rng = random.Random(0)
    pairs = [(f"So it is $\\boxed{{{answer}}}$.", {"answer": gold}) for answer, gold in draw(rng)]
    grade_many("math500", pairs[:4])  # imports, once in a process's life
    started = time.perf_counter()
    verdicts = grade_many("math500", pairs)
    seconds = time.perf_counter() - started
    right = sum(verdict.correct for verdict in verdicts) / ANSWERS
    return {
        f"seconds for {ANSWERS} answers": seconds,
        "answers a second": ANSWERS / seconds,
        "share of right ones": right,
    }


def draw(rng: random.Random) -> list[tuple[str, str]]:
    """(answer, gold) of the kinds that MATH has, half of them right and spelt otherwise."""
    kinds: list[Callable[[int, int], tuple[str, str]]] = [
        lambda a, b: (f"{a}", f"{a}"),
        lambda a, b: (f"{a}.0", f"{a}"),
        lambda a, b: (f"\\dfrac{{{a}}}{{{b}}}", f"\\frac{{{a}}}{{{b}}}"),
        lambda a, b: (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}"),
        lambda a, b: (f"x^2+{a}x+{b}", f"{b}+x^2+{a} x"),
        lambda a, b: (f"({a}, {b})", f"\\left({a},{b}\\right)"),
        lambda a, b: (f"{a}+{b}i", f"{b}i+{a}"),
        lambda a, b: (f"[{a},\\infty)", f"\\left[{a}, \\infty\\right)"),
    ]
    drawn = []
    for place in range(ANSWERS):
        a, b = rng.randrange(2, 10**4), rng.randrange(2, 10**4)
        answer, gold = kinds[place % len(kinds)](a, b)
        drawn.append(
            (answer if rng.random() < 0.5 else kinds[place % len(kinds)](a + 1, b)[0], gold)
        )
    return drawn


def sandbox(repetitions: int) -> dict[str, float]:
    """Seconds of a program that prints a line, beside python's own start."""
    import subprocess

    bare, held = [], []
    for _ in range(5 * repetitions):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-c", "print(1)"], check=True, capture_output=True)
        bare.append(time.perf_counter() - started)
        started = time.perf_counter()
        run_program("print(1)")
        held.append(time.perf_counter() - started)
    return {
        "seconds of a program": median(held),
        "seconds of python alone": median(bare),
        "seconds that the sandbox adds": median(held) - median(bare),
    }


def overhead(repetitions: int) -> dict[str, float]:
    """An evaluation of 500 problems x 4 beside the engine's bare sampling of the same responses."""
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder) / "micro"
        build_suite(suite, MicroConfig(train_problems=10, test_problems=500))
        checkpoint, data = suite / "teacher-init", str(suite / "micro_maths" / "test.jsonl")
        settings = EvaluationConfig(data=data)
        problems = load_problems(find("micro_maths"), data).problems
        bare, whole = [], []
        for i in range(repetitions):
            started = time.perf_counter()
            engine = HFEngine.load(checkpoint)
            prompts = [render(engine.tokenizer, p.messages) for p in problems for _ in range(4)]
            seeds = [sample_seed(settings.seed, p.id, k) for p in problems for k in range(4)]
            for start in range(0, len(prompts), settings.batch_size):
                cut = slice(start, start + settings.batch_size)
                engine.generate(prompts[cut], SamplingParams(48), seeds=seeds[cut])
            bare.append(time.perf_counter() - started)
            started = time.perf_counter()
            evaluate_checkpoint(checkpoint, settings, Path(folder) / f"out-{i}")
            whole.append(time.perf_counter() - started)
    return {
        "seconds of bare sampling": median(bare),
        "seconds of the evaluation": median(whole),
        "ratio": median(whole) / median(bare),
    }


if __name__ == "__main__":
    sys.exit(main())
