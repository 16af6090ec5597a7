"""What an evaluation leaves behind: results.json and samples.parquet.

The contract is docs/design/run-directory.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evals.benchmarks import find
from reopold.config import ConfigError, EvaluationConfig, Family
from reopold.run_dir import write_atomic

Metric = Literal["avg@k", "pass@k", "maj@k"]

METRICS: tuple[Metric, ...] = ("avg@k", "pass@k", "maj@k")

RESULTS_FILE = "results.json"
SAMPLES_FILE = "samples.parquet"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Score(_Frozen):
    """Mean over the questions of one metric, with its 95 % interval, all in [0, 1]."""

    metric: Metric
    k: int
    n: int
    value: float
    low: float
    high: float


class GenerationSettings(_Frozen):
    temperature: float
    max_new_tokens: int
    seed: int


class DatasetIdentity(_Frozen):
    path: str
    digest: str
    """SHA-256 of the file."""


class Results(_Frozen):
    """One checkpoint on one benchmark."""

    schema_version: Literal[1] = Field(1, alias="schema")
    benchmark: str
    benchmark_version: int
    family: Family
    checkpoint_step: int
    """Completed training steps; 0 for a checkpoint that does not say."""
    checkpoint_digest: str
    n: int
    """Questions."""
    k: int
    """Samples a question."""
    scores: list[Score]
    truncated_fraction: float
    """Share of samples that reached max_new_tokens."""
    no_answer_fraction: float
    """Share of samples without an answer; they count as wrong."""
    seconds: float
    """Wall-clock from loading the checkpoint to the last interval."""
    generation: GenerationSettings
    dtype: str
    """Of the weights that sampled."""
    dataset: DatasetIdentity
    versions: dict[str, str]

    def headline(self) -> str:
        """The scores with their intervals, on one line."""
        return ", ".join(
            f"{score.metric.replace('k', str(score.k))} {score.value:.3f} "
            f"[{score.low:.3f}, {score.high:.3f}]"
            for score in self.scores
        )

    def score(self, metric: Metric) -> Score:
        return next(score for score in self.scores if score.metric == metric)

    def answers(
        self, checkpoint_digest: str, dataset_digest: str, settings: EvaluationConfig, dtype: str
    ) -> bool:
        """Whether evaluating this checkpoint again would only repeat these results."""
        return (
            self.checkpoint_digest == checkpoint_digest
            and self.dataset.digest == dataset_digest
            and self.benchmark == settings.benchmark
            and self.benchmark_version == find(settings.benchmark).version
            and self.dtype == dtype
            and self.k == settings.samples
            and self.generation == generation_settings(settings)
        )


@dataclass(frozen=True)
class SampleRow:
    """A row of samples.parquet."""

    question_id: str
    sample: int
    """Repeat, from 0."""
    prompt: str
    """The question, without the chat template."""
    response: str
    extracted: str | None
    gold: str
    correct: bool
    status: str
    finish_reason: str
    tokens: int
    """Response tokens, a closing EOS included."""


def generation_settings(settings: EvaluationConfig) -> GenerationSettings:
    return GenerationSettings(
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
    )


def write_results(folder: Path, results: Results, rows: Sequence[SampleRow]) -> None:
    """Write both files; results.json comes last, so where it is, all is.

    Rows are sorted by question id, then sample.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # What is being replaced must not pass for the results of the new samples.
        (folder / RESULTS_FILE).unlink(missing_ok=True)
        _write_parquet(folder / SAMPLES_FILE, rows)
        text = results.model_dump_json(by_alias=True, indent=2)
        write_atomic(folder / RESULTS_FILE, text + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}") from error


def read_results(folder: Path) -> Results | None:
    """The results in a folder, or None if it has none (or an evaluation died half-way).

    Raises:
        ConfigError: results.json is not what this version writes.
    """
    file = folder / RESULTS_FILE
    try:
        return Results.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is damaged or of another version: delete it") from error


def load_results(run_dir: Path) -> list[Results]:
    """All results of a run directory, by checkpoint step, then benchmark.

    Raises:
        ConfigError: a results.json is damaged.
    """
    folders = {file.parent for file in run_dir.glob(f"eval/step-*/*/{RESULTS_FILE}")}
    found = [results for folder in folders if (results := read_results(folder)) is not None]
    return sorted(found, key=lambda results: (results.checkpoint_step, results.benchmark))


def _write_parquet(path: Path, rows: Sequence[SampleRow]) -> None:
    import pyarrow as pa  # imported here: a reader of scores needs no arrow
    import pyarrow.parquet as pq

    kinds = {"sample": pa.int32(), "tokens": pa.int32(), "correct": pa.bool_()}
    schema = pa.schema(
        # Spelt out: a column of nothing but None would lose its type.
        [(name, kinds.get(name, pa.string())) for name in SampleRow.__dataclass_fields__]
    )
    ordered = sorted(rows, key=lambda row: (row.question_id, row.sample))
    table = pa.Table.from_pylist([asdict(row) for row in ordered], schema=schema)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, path)
