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
from evals.grading import check_rule
from evals.scores import Score
from reopold.config import ConfigError, EvaluationConfig, Family
from reopold.run_dir import write_atomic

RESULTS_FILE = "results.json"
SAMPLES_FILE = "samples.parquet"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class GenerationSettings(_Frozen):
    engine: Literal["hf", "vllm", "server"]
    temperature: float
    top_p: float
    max_new_tokens: int
    max_turns: int
    """1 but for dialogues with tools."""
    thinking_tokens: int
    """Forced budget of the thought; 0: none."""
    ignore_end: int
    seed: int


class DatasetIdentity(_Frozen):
    path: str
    """The file or hub id that was read; one in the home relative to where the home is."""
    revision: str | None
    """Commit of the hub's data set; None for local files."""
    digest: str
    """SHA-256 of the file."""
    limit: int
    """Items asked for; 0 is all."""


class GraderIdentity(_Frozen):
    name: str
    rule: str
    version: int
    """The benchmark's: raised when it would grade or prompt otherwise."""


class Results(_Frozen):
    """One checkpoint on one benchmark."""

    schema_version: Literal[2] = Field(2, alias="schema")
    benchmark: str
    family: Family
    grader: GraderIdentity
    checkpoint_step: int
    """Completed training steps; 0 for a checkpoint that does not say."""
    checkpoint_digest: str
    n: int
    """Questions."""
    k: int
    """Samples a question."""
    parameters: int
    """Of the checkpoint, read from its safetensors; 0 where it has none."""
    metric: str
    """The one of `scores` that papers report."""
    scores: list[Score]
    truncated_fraction: float
    """Share of samples that reached max_new_tokens."""
    no_answer_fraction: float
    """Share of samples without an answer; they count as wrong."""
    statuses: dict[str, int]
    """Samples by status of their verdict."""
    tokens: int
    """Sampled in all."""
    seconds: float
    """Wall-clock of the last start, from loading libraries and checkpoint to the last interval."""
    generation: GenerationSettings
    dtype: str
    """Of the weights that sampled."""
    dataset: DatasetIdentity
    isolation: str
    """What held model-written programs; empty where none was run."""
    versions: dict[str, str]

    def headline(self) -> str:
        """The scores that every benchmark has, with their intervals, on one line."""
        return ", ".join(
            f"{score.metric.replace('k', str(score.k))} {score.value:.3f} "
            f"[{score.low:.3f}, {score.high:.3f}]"
            for score in self.scores
            if "@" in score.metric
        )

    def score(self, metric: str) -> Score:
        return next(score for score in self.scores if score.metric == metric)

    def answers(
        self, checkpoint_digest: str, dataset_digest: str, settings: EvaluationConfig, dtype: str
    ) -> bool:
        """Whether evaluating this checkpoint again would only repeat these results."""
        return (
            self.checkpoint_digest == checkpoint_digest
            and (self.dataset.digest, self.dataset.limit) == (dataset_digest, settings.limit)
            and self.benchmark == find(settings.benchmark).name
            and self.grader == grader_identity(settings)
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
    """The last message before the answer, without the chat template."""
    images: list[str]
    """Paths or hub references of the question's images."""
    cluster: str
    """Questions of one cluster (five versions of one figure) are no independent evidence."""
    response: str
    answer: str | None
    """What was graded of a dialogue; null: the response."""
    response_ids: list[int]
    """Token ids, a closing EOS and a dialogue's observations included."""
    extracted: str | None
    vote: str | None
    """Class of equivalent answers: "right", or a wrong one's; null without an answer."""
    gold: str
    correct: bool
    status: str
    finish_reason: str
    tokens: int
    """Sampled tokens, a closing EOS included."""
    prompt_tokens: int
    seconds: float
    """Wall-clock from the start of the sample's batch to its last token."""
    calls: int
    """Tool calls."""
    failed_calls: int
    """Those that were the model's mistake."""


def generation_settings(settings: EvaluationConfig) -> GenerationSettings:
    return GenerationSettings(
        engine=settings.engine,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
        max_turns=settings.max_turns if find(settings.benchmark).environment else 1,
        thinking_tokens=settings.thinking_tokens,
        ignore_end=settings.ignore_end,
        seed=settings.seed,
    )


def grader_identity(settings: EvaluationConfig) -> GraderIdentity:
    benchmark = find(settings.benchmark)
    rule = check_rule(benchmark, settings.rule or None)
    return GraderIdentity(name=benchmark.grader, rule=rule, version=benchmark.version)


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

    kinds = dict.fromkeys(
        ("sample", "tokens", "prompt_tokens", "calls", "failed_calls"), pa.int32()
    ) | {
        "correct": pa.bool_(),
        "seconds": pa.float64(),
        "response_ids": pa.list_(pa.int32()),
        "images": pa.list_(pa.string()),
    }
    schema = pa.schema(
        # Spelt out: a column of nothing but None would lose its type.
        [(name, kinds.get(name, pa.string())) for name in SampleRow.__dataclass_fields__]
    )
    ordered = sorted(rows, key=lambda row: (row.question_id, row.sample))
    table = pa.Table.from_pylist([asdict(row) for row in ordered], schema=schema)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, path)
