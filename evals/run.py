"""Evaluate checkpoints: `python -m evals.run RUN_DIR`, or one bare checkpoint folder.

    python -m evals.run RUN_DIR [--steps 25,50]
    python -m evals.run --checkpoint FOLDER --config EVALUATION_JSON --output FOLDER

The first form evaluates every complete checkpoint of a run by the run's own recipe. Both keep
results that already answer the question. Bad input ends with exit code 2 and one line on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.benchmarks import Benchmark, find
from evals.benchmarks.problems import Problems, load_problems
from evals.results import (
    METRICS,
    DatasetIdentity,
    Results,
    SampleRow,
    Score,
    generation_settings,
    read_results,
    write_results,
)
from evals.stats import score_interval
from reopold.config import ConfigError, EvaluationConfig, parse
from reopold.integrity import COMPLETE, faults, marker
from reopold.provenance import checkpoint_digest, versions
from reopold.run_dir import RunDir
from reopold.stopping import EXIT_STOPPED, ShouldStop, StopFlag, StopRequested, check, never

if TYPE_CHECKING:
    from evals.harness.task import Question
    from reopold.engines.base import Engine

#: Share of a GPU's memory for vLLM, which has it to itself while it evaluates.
EVALUATION_MEMORY = 0.85


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate checkpoints on and how, checked before anything slow is imported."""

    settings: EvaluationConfig
    benchmark: Benchmark
    problems: Problems
    dtype: str = "float32"
    device: str = "auto"
    threads: int | None = None
    """CPU threads of torch; None leaves them as they are."""
    should_stop: ShouldStop = never


def prepare(
    settings: EvaluationConfig,
    *,
    dtype: str = "float32",
    device: str = "auto",
    threads: int | None = None,
    should_stop: ShouldStop = never,
) -> Evaluation:
    """Raises ConfigError: unknown benchmark, senseless settings or unreadable problems."""
    benchmark = check_settings(settings)
    if not settings.data:
        raise ConfigError("evaluation.data is empty: name the JSONL file of test problems")
    problems = load_problems(Path(settings.data))
    return Evaluation(settings, benchmark, problems, dtype, device, threads, should_stop)


def check_settings(settings: EvaluationConfig) -> Benchmark:
    """Raises ConfigError: unknown benchmark, or several samples that would all be the same."""
    benchmark = find(settings.benchmark)
    if settings.temperature == 0.0 and settings.samples > 1:
        raise ConfigError(
            f"evaluation.temperature 0 is greedy: all {settings.samples} samples of a question "
            "would be the same; set evaluation.samples to 1 or raise the temperature"
        )
    return benchmark


def evaluate_checkpoint(
    checkpoint: Path,
    settings: EvaluationConfig,
    output: Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    step: int | None = None,
) -> Results:
    """Sample, grade and score one checkpoint; write results.json and samples.parquet to `output`.

    Args:
        checkpoint: Hugging Face folder.
        step: completed training steps; None reads COMPLETE, and is 0 where there is none.

    Raises:
        ConfigError: the checkpoint, the settings, the test file, the device or the output folder
            will not do.
    """
    return _evaluate(checkpoint, prepare(settings, dtype=dtype, device=device), output, step)


def ensure_results(
    checkpoint: Path, evaluation: Evaluation, output: Path, step: int | None = None
) -> tuple[Results, bool]:
    """Results of a checkpoint, and whether they had to be made: valid ones on disk are kept.

    Raises:
        ConfigError: as :func:`evaluate_checkpoint`.
    """
    digest, _ = _identity(checkpoint)
    there = read_results(output)
    settings, problems = evaluation.settings, evaluation.problems
    if there and there.answers(digest, problems.digest, settings, evaluation.dtype):
        return there, False
    return _evaluate(checkpoint, evaluation, output, step), True


def _evaluate(checkpoint: Path, evaluation: Evaluation, output: Path, step: int | None) -> Results:
    digest, trained = _identity(checkpoint)
    if (checkpoint / COMPLETE).exists() and (wrong := faults(checkpoint)):
        raise ConfigError(f"{checkpoint} is damaged: {'; '.join(wrong[:3])}")
    from evals.harness.task import run_benchmark  # torch and lm-eval: seconds to import

    load_engine = _engine_loader(evaluation)
    settings, problems = evaluation.settings, evaluation.problems
    started = time.perf_counter()
    engine, tokenizer = load_engine(checkpoint)
    try:
        questions = run_benchmark(
            evaluation.benchmark, problems.records, settings, engine, tokenizer
        )
    finally:
        engine.close()
    rows = sample_rows(questions)
    scores = score(questions, settings.samples)
    results = Results(
        benchmark=evaluation.benchmark.name,
        benchmark_version=evaluation.benchmark.version,
        dtype=evaluation.dtype,
        family=evaluation.benchmark.family,
        checkpoint_step=trained if step is None else step,
        checkpoint_digest=digest,
        n=len(questions),
        k=settings.samples,
        scores=scores,
        truncated_fraction=sum(row.finish_reason == "length" for row in rows) / len(rows),
        no_answer_fraction=sum(row.extracted is None for row in rows) / len(rows),
        seconds=round(time.perf_counter() - started, 3),
        generation=generation_settings(settings),
        dataset=DatasetIdentity(path=settings.data, digest=problems.digest),
        versions=versions(),
    )
    write_results(output, results, rows)
    return results


def score(questions: Sequence[Question], k: int) -> list[Score]:
    """Every metric's mean over the questions, with its interval."""
    scores = []
    for metric in METRICS:
        interval = score_interval([question.values[metric] for question in questions])
        scores.append(
            Score(
                metric=metric,
                k=k,
                n=len(questions),
                value=interval.value,
                low=interval.low,
                high=interval.high,
            )
        )
    return scores


def sample_rows(questions: Sequence[Question]) -> list[SampleRow]:
    return [
        SampleRow(
            question_id=question.record["id"],
            sample=repeat,
            prompt=question.record["prompt"][0]["content"],
            response=sample.response,
            extracted=sample.verdict.extracted,
            gold=question.record["answer"],
            correct=sample.verdict.correct,
            status=sample.verdict.status,
            finish_reason=sample.generation.finish_reason,
            tokens=sample.generation.tokens,
        )
        for question in questions
        for repeat, sample in enumerate(question.samples)
    ]


def _identity(checkpoint: Path) -> tuple[str, int]:
    """A checkpoint's digest and completed steps.

    Raises:
        ConfigError: it is no checkpoint folder, or one of ours that is damaged.
    """
    if not (checkpoint / "config.json").is_file():
        raise ConfigError(f"no checkpoint at {checkpoint}: it holds no config.json")
    try:
        return checkpoint_digest(checkpoint), int((marker(checkpoint) or {"step": 0})["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{checkpoint / COMPLETE} is damaged") from error


def _engine_loader(evaluation: Evaluation) -> Callable[[Path], tuple[Engine, Any]]:
    """Import the engine and settle its device; what remains is to load a checkpoint."""
    if evaluation.settings.engine == "vllm":
        return partial(_vllm_engine, dtype=evaluation.dtype, should_stop=evaluation.should_stop)
    import torch

    from reopold.engines.hf import HFEngine

    if evaluation.threads is not None:
        torch.set_num_threads(evaluation.threads)
    device = evaluation.device
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda' but no GPU is visible; use 'auto' or 'cpu'")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"

    def load(checkpoint: Path) -> tuple[Engine, Any]:
        try:
            engine = HFEngine.load(
                str(checkpoint),
                dtype=evaluation.dtype,
                device=device,
                should_stop=evaluation.should_stop,
            )
            return engine, engine.tokenizer
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"checkpoint {checkpoint} cannot be loaded: {reason}") from error

    return load


def _vllm_engine(checkpoint: Path, dtype: str, should_stop: ShouldStop) -> tuple[Engine, Any]:
    """vLLM in a child process, which ends before the next checkpoint's begins."""
    from reopold.data.tokenizers import load_tokenizer
    from reopold.engines.vllm import VLLMEngine

    tokenizer = load_tokenizer(str(checkpoint))
    engine = VLLMEngine(
        checkpoint,
        eos=tokenizer.eos_token_id,
        vocab_size=len(tokenizer),
        dtype=dtype,
        memory_fraction=EVALUATION_MEMORY,
        own_process=True,
        should_stop=should_stop,
    )
    return engine, tokenizer


def evaluate_run(
    run: RunDir, steps: Sequence[int] | None = None, should_stop: ShouldStop = never
) -> list[Results]:
    """Bring the results of a run's complete checkpoints up to date, a line each on stdout.

    Args:
        steps: the checkpoints, by completed steps; None takes all.

    Raises:
        ConfigError: as :func:`evaluate_checkpoint`, or a checkpoint is not there.
        StopRequested: a stop was asked for; the results made so far are kept.
    """
    config = run.config()
    complete = run.complete_checkpoints()
    wanted = complete if steps is None else sorted(set(steps))
    missing = [step for step in wanted if step not in complete]
    if missing or not wanted:
        there = ", ".join(map(str, complete)) or "none"
        asked = f" at step {', '.join(map(str, missing))}" if missing else ""
        gone = sorted(set(missing) & set(run.passed_checkpoints()))
        why = f"; train.keep_last has removed {', '.join(map(str, gone))}" if gone else ""
        raise ConfigError(f"no complete checkpoint{asked} in {run.path} (there: {there}{why})")
    evaluation = prepare(
        config.evaluation,
        dtype=config.model.dtype,
        device=config.model.device,
        threads=config.train.threads,
        should_stop=should_stop,
    )
    found = []
    for step in wanted:
        check(should_stop)
        results, made = ensure_results(
            run.checkpoint(step),
            evaluation,
            run.evaluation(step, evaluation.benchmark.name),
            step,
        )
        print(describe(results, made), flush=True)
        found.append(results)
    return found


def evaluate_folder(arguments: argparse.Namespace, should_stop: ShouldStop) -> None:
    """The second form of the command."""
    try:
        raw = json.loads(arguments.config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{arguments.config} cannot be read as JSON: {error}") from error
    evaluation = prepare(
        parse(raw, EvaluationConfig, str(arguments.config)),
        dtype=arguments.dtype,
        device=arguments.device,
        threads=arguments.threads,
        should_stop=should_stop,
    )
    results, made = ensure_results(arguments.checkpoint, evaluation, arguments.output)
    print(describe(results, made), flush=True)


def describe(results: Results, made: bool) -> str:
    """One plain line about a checkpoint."""
    spent = f"{results.seconds:.1f} s" if made else "kept"
    return f"step {results.checkpoint_step} {results.benchmark}: {results.headline()} ({spent})"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 2 where the input is at fault, 3 if it was stopped."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    bare = (arguments.checkpoint, arguments.config, arguments.output)
    if (arguments.run_dir is None) != all(bare) or (arguments.run_dir and any(bare)):
        parser.error("give RUN_DIR, or all of --checkpoint, --config and --output")
    _quiet()
    stop = StopFlag()
    try:
        if arguments.run_dir is not None:
            evaluate_run(RunDir(arguments.run_dir), arguments.steps, stop)
        else:
            evaluate_folder(arguments, stop)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StopRequested:
        print("stopped: what was evaluated is kept", file=sys.stderr)
        return EXIT_STOPPED
    return 0


def _quiet() -> None:
    """Local files only, and progress bars on a terminal only. Libraries read this when imported."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evals.run", description=__doc__.split("\n")[0])
    parser.add_argument("run_dir", nargs="?", type=Path, metavar="RUN_DIR")
    parser.add_argument("--steps", type=_steps, help="only these checkpoints, for example 25,50")
    parser.add_argument("--checkpoint", type=Path, help="a bare Hugging Face folder")
    parser.add_argument("--config", type=Path, help="JSON of the recipe's evaluation section")
    parser.add_argument("--output", type=Path, help="folder of results.json and samples.parquet")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser


def _steps(text: str) -> list[int]:
    return [int(step) for step in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
