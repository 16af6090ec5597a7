"""Grading outputs that were saved anywhere, without a model: `reopold grade`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evals.benchmarks import Benchmark, find
from evals.benchmarks.base import Graded, Problem, Row
from evals.grading import Verdict, check_rule, grade_many
from evals.scores import Score, Unscored, score, votes
from reopold.config import ConfigError
from reopold.run_dir import write_atomic


@dataclass(frozen=True)
class Line:
    number: int
    id: str
    record: Row
    """A row of the benchmark's published schema."""
    responses: list[str]


@dataclass(frozen=True)
class SavedGrades:
    """What `grade_file` found."""

    benchmark: str
    rule: str
    n: int
    """Questions (lines)."""
    responses: int
    correct: int
    metric: str
    """The one of `scores` that papers report."""
    scores: list[Score]
    statuses: dict[str, int]
    no_answer_fraction: float
    output: str

    def as_json(self) -> dict[str, Any]:
        """`metrics` by name: `avg@k` and its like with the number for k."""
        fields = asdict(self)
        scores = fields.pop("scores")
        by_name = {s.name: s.model_dump(exclude={"metric"}) for s in scores}
        return {**fields, "accuracy": self.correct / self.responses, "metrics": by_name}

    def as_text(self) -> str:
        """For people: a line a metric, the reported one marked."""
        lines = [
            f"{self.benchmark} by rule '{self.rule}': {self.correct} of {self.responses} responses "
            f"right, {self.n} questions"
        ]
        for s in self.scores:
            mark = "*" if s.metric == self.metric else " "
            lines.append(f"{mark} {s.name:24} {s.value:.4f} [{s.low:.4f}, {s.high:.4f}]")
        statuses = ", ".join(f"{status} {count}" for status, count in self.statuses.items())
        return "\n".join([*lines, f"statuses: {statuses}", f"verdicts: {self.output}"])


def read_responses(path: Path, benchmark: Benchmark) -> list[Line]:
    """Read `{"record": {...}, "responses": ["...", ...]}` lines.

    Raises:
        ConfigError: the file cannot be read or is empty; or lines (named by number, up to five)
            are not of that form, or their record lacks what the benchmark's schema has.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    lines, faults = [], []
    for number, raw in enumerate(text.split("\n"), start=1):  # splitlines also cuts at U+2028
        if not raw.strip():
            continue
        try:
            lines.append(_line(raw, number, benchmark))
        except ConfigError as error:
            faults.append(f"line {number}: {error}")
    if faults:
        more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""
        raise ConfigError(f"{path}: {'; '.join(faults[:5])}{more}. Nothing was graded")
    if not lines:
        raise ConfigError(f"{path} holds no responses")
    return lines


def grade_file(
    benchmark_name: str,
    path: Path,
    output: Path,
    *,
    rule: str | None = None,
    seed: int = 42,
) -> SavedGrades:
    """Grade every response of a file and write `{"id", "verdicts": [...]}` lines, whole or not.

    Args:
        seed: of official rules that guess where nothing can be read off.

    Raises:
        ConfigError: no such benchmark or rule, a malformed file, or an output that cannot be
            written.
        Unscored: the sandbox broke on some responses.
    """
    benchmark = find(benchmark_name)
    chosen = check_rule(benchmark, rule)
    lines = read_responses(path, benchmark)
    pairs = [(response, line.record) for line in lines for response in line.responses]
    if output.resolve() == path.resolve():
        raise ConfigError(f"{output} is the input: give --output another name")
    try:
        flat = iter(grade_many(benchmark.name, pairs, chosen, seed))
    except ConfigError as error:
        raise _blamed(path, benchmark.name, lines, chosen, error) from error
    verdicts = [[next(flat) for _ in line.responses] for line in lines]
    statuses = Counter(verdict.status for each in verdicts for verdict in each)
    if broken := statuses["sandbox_failure"]:
        raise Unscored(f"the sandbox broke on {broken} of {len(pairs)} responses: no score")
    graded = [
        Graded(_problem(line, benchmark), found)
        for line, found in zip(lines, verdicts, strict=True)
    ]
    voted = [votes(benchmark, found) for found in verdicts]
    scores = score(benchmark, graded, voted, every_k=True)
    _write(output, lines, verdicts)
    return SavedGrades(
        benchmark=benchmark.name,
        rule=chosen,
        n=len(lines),
        responses=len(pairs),
        correct=sum(verdict.correct for each in verdicts for verdict in each),
        metric=benchmark.metric,
        scores=scores,
        statuses=dict(sorted(statuses.items())),
        no_answer_fraction=statuses["no_answer"] / len(pairs),
        output=str(output),
    )


def _line(raw: str, number: int, benchmark: Benchmark) -> Line:
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is not JSON ({error})") from error
    if not isinstance(parsed, dict) or not {"record", "responses"} <= parsed.keys():
        raise ConfigError('is not {"record": {...}, "responses": ["...", ...]}')
    record, responses = parsed["record"], parsed["responses"]
    if not isinstance(record, dict):
        raise ConfigError("record is no JSON object")
    if not isinstance(responses, list) or not responses:
        raise ConfigError("responses is no list of at least one text")
    if not all(isinstance(response, str) for response in responses):
        raise ConfigError("responses holds something that is no text")
    benchmark.gold(record)  # says what it lacks
    try:
        name = benchmark.identify(record)
    except ConfigError:  # schemas of some copies have no id
        name = f"line-{number}"
    return Line(number, name, record, responses)


def _blamed(
    path: Path, name: str, lines: Sequence[Line], rule: str, error: ConfigError
) -> ConfigError:
    """The error with the number of the line whose record is at fault."""
    for line in lines:
        try:
            grade_many(name, [(line.responses[0], line.record)], rule)
        except ConfigError as found:
            return ConfigError(f"{path}: line {line.number}: {found}. Nothing was graded")
    return error


def _problem(line: Line, benchmark: Benchmark) -> Problem:
    cluster = benchmark.cluster(line.record) if benchmark.cluster else line.id
    return Problem(line.id, [], line.record, benchmark.gold(line.record), cluster=cluster)


def _write(output: Path, lines: Sequence[Line], verdicts: Sequence[Sequence[Verdict]]) -> None:
    rows = (
        {"id": line.id, "verdicts": [asdict(verdict) for verdict in found]}
        for line, found in zip(lines, verdicts, strict=True)
    )
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        write_atomic(output, text)
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from error
