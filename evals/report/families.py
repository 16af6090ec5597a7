"""What only some benchmarks have: kinds of questions, dialogues with tools, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from evals.report.pictures import picture
from evals.report.study import Evaluation, Run, Study
from evals.report.tables import NOTHING, Cell, Table
from evals.report.tokens import clean
from evals.report.words import interval_words, percent
from evals.results import SAMPLES_FILE
from evals.scores import METRICS
from evals.stats import Interval
from reopold.data.images import PLACEHOLDER

#: Questions with pictures that are shown.
GALLERY = 6


@dataclass(frozen=True)
class ShownQuestion:
    """A test question with its pictures (as `data:` addresses) and one answer to it."""

    id: str
    pictures: list[str]
    question: str
    answer: str
    response: str
    correct: bool


@dataclass(frozen=True)
class Gallery:
    run: str
    """Whose responses are shown."""
    questions: list[ShownQuestion]


def kind_table(study: Study, benchmark: str) -> Table | None:
    """The benchmark's own metrics (text-dominant against vision-only versions, say); None where
    it has none."""
    finals = _finals(study, benchmark)
    names = list(
        dict.fromkeys(
            score.metric
            for found in finals.values()
            for _, each in found
            for score in each.results.scores
            if score.metric not in METRICS
        )
    )
    if not names:
        return None
    rows = [
        [Cell(method), *(_kind([each for _, each in found], name) for name in names)]
        for method, found in finals.items()
    ]
    caption = (
        f"{benchmark}'s own metrics, shares in %: each run's last evaluated checkpoint, mean over "
        "seeds. Below it the lowest and the highest seed, or the 95 % interval of a single run."
    )
    columns = ["method", *(name.replace("_", " ") for name in names)]
    return Table(f"kinds-{benchmark}", "By kind of question", caption, columns, rows)


def _kind(found: Sequence[Evaluation], name: str) -> Cell:
    scores = [s for each in found for s in each.results.scores if s.metric == name]
    if not scores:
        return NOTHING
    values = [score.value for score in scores]
    ends = (min(values), max(values)) if len(values) > 1 else (scores[0].low, scores[0].high)
    interval = Interval(sum(values) / len(values), *ends)
    if not 0.0 <= min(values) <= max(values) <= 1.0:  # no share
        return Cell(f"{interval.value:.3g}", f"{interval.low:.3g} to {interval.high:.3g}")
    return Cell(percent(interval.value), interval_words(interval))


def dialogue_table(study: Study, benchmark: str) -> Table | None:
    """How tools were used at the last evaluated checkpoints; None where there are none."""
    rows, used = [], False
    for method, found in _finals(study, benchmark).items():
        frames = [_samples(each, ["calls", "failed_calls", "finish_reason"]) for _, each in found]
        there = [frame for frame in frames if frame is not None]
        tools = any(each.results.family == "tools" for _, each in found)
        if not there:
            continue
        used |= tools or any(frame["calls"].any() for frame in there)
        rows.append([Cell(method), *_use(there)])
    if not used:
        return None
    columns = ["method", "calls a dialogue", "failed calls, %", "without a call, %"]
    columns += ["out of turns, %", "out of tokens, %", "out of time, %"]
    caption = (
        "Dialogues with tools, all samples of each run's last evaluated checkpoint, mean over "
        "seeds (below: lowest and highest). A failed call is the model's mistake: malformed, "
        "unknown or refused by the tool. The last three are dialogues that a budget ended."
    )
    return Table(f"dialogues-{benchmark}", "Use of tools", caption, columns, rows)


def _use(frames: Sequence[pd.DataFrame]) -> list[Cell]:
    """One cell a column, over the runs of a method."""
    calls = [float(frame["calls"].mean()) for frame in frames]
    made = [(int(f["failed_calls"].sum()), int(f["calls"].sum())) for f in frames]
    failed = [wrong / all_ for wrong, all_ in made if all_]
    shares = [[float((frame["calls"] == 0).mean()) for frame in frames]]
    shares += [
        [float((frame["finish_reason"] == reason).mean()) for frame in frames]
        for reason in ("turns", "length", "seconds")
    ]
    return [_spread(calls, 1.0), *(_spread(each, 100.0) for each in (failed, *shares))]


def _spread(values: Sequence[float], scale: float) -> Cell:
    if not values:
        return NOTHING
    digits = 2 if scale == 1.0 else 1
    mean, low, high = (
        f"{scale * x:.{digits}f}" for x in (sum(values) / len(values), min(values), max(values))
    )
    return Cell(mean, f"{low} to {high}" if len(values) > 1 else "")


def gallery(study: Study, benchmark: str) -> Gallery | None:
    """A few questions with pictures, spread over the test file; None where there are none."""
    for run in [*study.of("reopold"), *study.runs, *study.references.values()]:
        for evaluation in reversed(run.scored(benchmark)):
            columns = ["question_id", "sample", "prompt", "images", "response", "gold", "correct"]
            samples = _samples(evaluation, columns)
            if samples is None or not samples["images"].map(len).any():
                return None
            first = samples[(samples["sample"] == 0) & (samples["images"].map(len) > 0)]
            rows = first.sort_values("question_id").to_dict("records")
            chosen = [rows[i * len(rows) // GALLERY] for i in range(min(GALLERY, len(rows)))]
            shown = [each for row in chosen if (each := _question(study, row))]
            return Gallery(run.name, shown) if shown else None
    return None


def _question(study: Study, row: Mapping[Any, Any]) -> ShownQuestion | None:
    pictures = [picture(study, str(path)) for path in row["images"]]
    if None in pictures:
        return None
    return ShownQuestion(
        id=str(row["question_id"]),
        pictures=[each for each in pictures if each],
        question=clean(str(row["prompt"]).replace(PLACEHOLDER, "").strip()),
        answer=clean(str(row["gold"])),
        response=clean(str(row["response"])),
        correct=bool(row["correct"]),
    )


def _finals(study: Study, benchmark: str) -> dict[str, list[tuple[Run, Evaluation]]]:
    """The last evaluation of every run, by method in study order."""
    order = ["student", *study.compared, "teacher"]
    found = {
        method: [
            (run, run.scored(benchmark)[-1]) for run in study.of(method) if run.scored(benchmark)
        ]
        for method in order
    }
    return {method: each for method, each in found.items() if each}


def _samples(evaluation: Evaluation, columns: list[str]) -> pd.DataFrame | None:
    try:
        return pd.read_parquet(evaluation.folder / SAMPLES_FILE, columns=columns)
    except (OSError, ValueError):  # of an earlier version, or torn
        return None
