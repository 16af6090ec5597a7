"""Evaluating one checkpoint on one benchmark: checked first, resumable, kept where it holds."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evals.benchmarks import Benchmark, find
from evals.benchmarks.base import Graded
from evals.benchmarks.places import told
from evals.benchmarks.problems import Problems, load_problems
from evals.grading import GRADERS, check_rule
from evals.results import (
    DatasetIdentity,
    Results,
    SampleRow,
    generation_settings,
    grader_identity,
    read_results,
    write_results,
)
from evals.scores import Unscored, score
from reopold.config import ConfigError, EvaluationConfig
from reopold.integrity import COMPLETE, faults, marker
from reopold.provenance import checkpoint_digest, parameter_count, versions
from reopold.stopping import ShouldStop, never

if TYPE_CHECKING:
    from evals.harness.engines import Engines
    from evals.harness.task import Question


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
    problems = load_problems(benchmark, settings.data or None, limit=settings.limit or None)
    problems.check_samplable()
    return Evaluation(settings, benchmark, problems, dtype, device, threads, should_stop)


def check_settings(settings: EvaluationConfig) -> Benchmark:
    """Raises ConfigError: unknown benchmark or rule, or settings that do not go together."""
    benchmark = find(settings.benchmark)
    check_rule(benchmark, settings.rule or None)
    if settings.temperature == 0.0 and settings.samples > 1:
        raise ConfigError(
            f"evaluation.temperature 0 is greedy: all {settings.samples} samples of a question "
            "would be the same; set evaluation.samples to 1 or raise the temperature"
        )
    if settings.thinking_tokens and benchmark.environment:
        raise ConfigError(f"budget forcing is for single answers, which {benchmark.name} has not")
    if settings.ignore_end and not settings.thinking_tokens:
        raise ConfigError("evaluation.ignore_end needs a budget: evaluation.thinking_tokens")
    if (settings.engine == "server") != bool(settings.urls):
        raise ConfigError("evaluation.urls and evaluation.engine 'server' go together")
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
        Unscored: the sandbox broke. EngineFailure: the engine did.
    """
    from evals.harness.engines import Engines

    with Engines() as engines:
        evaluation = prepare(settings, dtype=dtype, device=device)
        return _evaluate(checkpoint, _identity(checkpoint), evaluation, output, engines, step)


def ensure_results(
    checkpoint: Path,
    evaluation: Evaluation,
    output: Path,
    step: int | None = None,
    *,
    engines: Engines | None = None,
) -> tuple[Results, bool]:
    """Results of a checkpoint, and whether they had to be made: valid ones on disk are kept.

    Args:
        engines: where an engine that already holds the checkpoint may be found.

    Raises:
        ConfigError, Unscored, EngineFailure: as :func:`evaluate_checkpoint`.
    """
    identity = _identity(checkpoint)
    there = read_results(output)
    settings, problems = evaluation.settings, evaluation.problems
    if there and there.answers(identity[0], problems.digest, settings, evaluation.dtype):
        return there, False
    from evals.harness.engines import Engines

    if engines is not None:
        return _evaluate(checkpoint, identity, evaluation, output, engines, step), True
    with Engines() as own:
        return _evaluate(checkpoint, identity, evaluation, output, own, step), True


def _evaluate(
    checkpoint: Path,
    identity: tuple[str, int],
    evaluation: Evaluation,
    output: Path,
    engines: Engines,
    step: int | None,
) -> Results:
    digest, trained = identity
    if (checkpoint / COMPLETE).exists() and (wrong := faults(checkpoint)):
        raise ConfigError(f"{checkpoint} is damaged: {'; '.join(wrong[:3])}")
    from evals.harness.journal import Journal, discard
    from evals.harness.task import run_benchmark  # torch and lm-eval: seconds to import

    settings, problems = evaluation.settings, evaluation.problems
    started = time.perf_counter()
    journal = Journal(output, _samples_identity(digest, evaluation))
    try:
        sampler = engines.sampler(checkpoint, evaluation)
        questions = run_benchmark(
            evaluation.benchmark, problems.problems, settings, sampler, journal
        )
    finally:
        journal.close()
    seconds = time.perf_counter() - started
    results = _results(
        questions,
        evaluation,
        digest=digest,
        step=trained if step is None else step,
        parameters=int(parameter_count(checkpoint)),
        seconds=seconds,
    )
    write_results(output, results, sample_rows(questions))
    discard(output)
    return results


def _results(
    questions: Sequence[Question],
    evaluation: Evaluation,
    *,
    digest: str,
    step: int,
    parameters: int,
    seconds: float,
) -> Results:
    settings, benchmark, problems = evaluation.settings, evaluation.benchmark, evaluation.problems
    samples = [sample for question in questions for sample in question.samples]
    statuses = Counter(sample.verdict.status for sample in samples)
    if broken := statuses["sandbox_failure"]:
        raise Unscored(
            f"the sandbox broke on {broken} of {len(samples)} samples of {benchmark.name}: no "
            "score; the samples are kept, start again to grade them anew"
        )
    graded = [
        Graded(question.problem, [sample.verdict for sample in question.samples])
        for question in questions
    ]
    voted = [[sample.vote for sample in question.samples] for question in questions]
    return Results(
        benchmark=benchmark.name,
        family=benchmark.family,
        grader=grader_identity(settings),
        dtype=evaluation.dtype,
        checkpoint_step=step,
        checkpoint_digest=digest,
        n=len(questions),
        k=settings.samples,
        parameters=parameters,
        metric=benchmark.metric,
        scores=score(benchmark, graded, voted),
        truncated_fraction=_share(s.generation.finish_reason != "stop" for s in samples),
        no_answer_fraction=_share(sample.verdict.status == "no_answer" for sample in samples),
        statuses=dict(sorted(statuses.items())),
        tokens=sum(sample.generation.tokens for sample in samples),
        seconds=round(seconds, 3),
        generation=generation_settings(settings),
        dataset=DatasetIdentity(
            path=told(problems.origin),
            revision=problems.revision,
            digest=problems.digest,
            limit=settings.limit,
        ),
        isolation=_isolation(benchmark),
        versions=versions(),
    )


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values)


def _isolation(benchmark: Benchmark) -> str:
    """How programs of the model were held, where there were any."""
    runs_code = GRADERS[benchmark.grader].isolation == "sandbox" or benchmark.environment in (
        "python",
        "python_call",
    )
    if not runs_code:
        return ""
    from reopold.sandbox import isolation

    return isolation().text


def _samples_identity(checkpoint: str, evaluation: Evaluation) -> str:
    """Digest of everything that decides what is sampled."""
    settings = evaluation.settings
    parts = (
        checkpoint,
        evaluation.dtype,
        evaluation.benchmark.name,
        evaluation.benchmark.version,
        evaluation.problems.digest,
        settings.limit,
        generation_settings(settings).model_dump(),
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def sample_rows(questions: Sequence[Question]) -> list[SampleRow]:
    return [
        SampleRow(
            question_id=question.problem.id,
            sample=repeat,
            prompt=question.problem.messages[-1]["content"],
            images=[told(image) for image in question.problem.images],
            cluster=question.problem.cluster or question.problem.id,
            response=sample.generation.text,
            answer=sample.generation.answer,
            response_ids=sample.generation.ids,
            extracted=sample.verdict.extracted,
            vote=sample.vote,
            gold=question.problem.gold,
            correct=sample.verdict.correct,
            status=sample.verdict.status,
            finish_reason=sample.generation.finish_reason,
            tokens=sample.generation.tokens,
            prompt_tokens=sample.generation.prompt_tokens,
            seconds=sample.generation.seconds,
            calls=sample.generation.calls,
            failed_calls=sample.generation.failed_calls,
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
