"""Two evaluations side by side: paired differences, and the speed-up of one over the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from evals.comparison import Comparison, compare, with_holm
from evals.results import RESULTS_FILE, SAMPLES_FILE, Results, read_results
from evals.scaling.curves import QuestionCurves, question_curves
from evals.scaling.speedup import SpeedUp, speed_up
from reopold.config import ConfigError


@dataclass(frozen=True)
class Contrast:
    """What two evaluations have in common."""

    comparisons: list[Comparison]
    """One a benchmark, of avg@k, with Holm's correction over them."""
    speed_ups: dict[str, SpeedUp]
    """By benchmark: of the first as student over the second as teacher; where the first has
    several samples a question and both say how many parameters they have."""

    def as_text(self) -> str:
        lines = [comparison.sentence() for comparison in self.comparisons]
        lines += [f"{name}: {found.sentence()}" for name, found in self.speed_ups.items()]
        return "\n".join(lines)


def contrast(first: Path, second: Path) -> Contrast:
    """Compare every benchmark that both folders of `reopold evaluate` hold.

    Raises:
        ConfigError: they share no benchmark, or answered other questions, or by other rules.
    """
    ours, theirs = _evaluations(first), _evaluations(second)
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise ConfigError(
            f"{first} ({', '.join(ours) or 'no results'}) and {second} "
            f"({', '.join(theirs) or 'no results'}) share no benchmark"
        )
    comparisons, speed_ups = [], {}
    for name in shared:
        a, b = ours[name], theirs[name]
        for field in ("dataset.digest", "grader"):
            if _at(a.results, field) != _at(b.results, field):
                raise ConfigError(f"{name}: the two evaluations differ in {field}")
        names = (_label(first), _label(second))
        clusters = dict(zip(a.samples["question_id"], a.samples["cluster"], strict=True))
        comparisons.append(
            compare(a.verdicts(), b.verdicts(), names=names, benchmark=name, clusters=clusters)
        )
        if a.results.k > 1 and a.results.parameters and b.results.parameters:
            speed_ups[name] = speed_up([a.curves()], b.curves())
    return Contrast(with_holm(comparisons), speed_ups)


@dataclass(frozen=True)
class _Evaluation:
    results: Results
    samples: pd.DataFrame

    def verdicts(self) -> dict[str, list[float]]:
        grouped = self.samples.groupby("question_id", sort=False)["correct"]
        return {str(question): [float(x) for x in rows] for question, rows in grouped}

    def curves(self) -> QuestionCurves:
        return question_curves(self.samples, self.results.parameters)


def _evaluations(folder: Path) -> dict[str, _Evaluation]:
    """Results by benchmark, of a folder that holds them or one folder for each."""
    found = {}
    for file in sorted([*folder.glob(RESULTS_FILE), *folder.glob(f"*/{RESULTS_FILE}")]):
        results = read_results(file.parent)
        if results is not None:
            frame = pd.read_parquet(file.parent / SAMPLES_FILE)
            found[results.benchmark] = _Evaluation(results, frame)
    return found


def _label(folder: Path) -> str:
    return folder.resolve().name


def _at(results: Results, field: str) -> object:
    value: object = results
    for part in field.split("."):
        value = getattr(value, part)
    return value
