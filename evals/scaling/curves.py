"""Score against what it cost: curves over the number of samples a question, from one evaluation.

All k are estimated from the same samples (:mod:`evals.scaling.estimators`). Costs are those of
drawing k samples of the average question: its prompt once, whatever room its images take in the
model included, and k times the mean of its samples. Engines do read a prompt once for all samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from evals.clusters import question_score
from evals.scaling.estimators import avg_at_k, best_at_k, pass_at_k, pass_hat_k
from evals.scaling.votes import Ties, majority_at_k
from evals.stats import LEVEL
from reopold.config import ConfigError

FloatArray = NDArray[np.float64]

METRICS = ("avg@k", "pass@k", "maj@k")

#: Of samples.parquet; a frame may also have `cluster`, `prompt_tokens` (without it prompts cost
#: nothing) and, for best@k, `score`.
COLUMNS = ("question_id", "sample", "vote", "correct", "tokens", "seconds")

#: A multiply and an add for each parameter and token.
FLOPS_PER_PARAMETER = 2

_RIGHT = "right"


@dataclass(frozen=True)
class QuestionCurves:
    """What one evaluation says of each question. Axes: Q questions by id, K numbers of samples."""

    questions: list[str]
    clusters: list[str] | None
    ks: tuple[int, ...]
    samples: tuple[int, int]
    """The fewest and the most samples that a question has."""
    scores_QK: Mapping[str, FloatArray]
    average_Q: FloatArray
    """Share of right samples."""
    tokens_Q: FloatArray
    """Of a response, mean over a question's samples."""
    seconds_Q: FloatArray
    prompt_tokens_Q: FloatArray
    parameters: float
    """Of the model, those that a token passes through."""


def scaling_curve(
    frame: pd.DataFrame,
    parameters: float,
    *,
    metrics: Sequence[str] = METRICS,
    ks: Sequence[int] | None = None,
    ties: Ties = "fractional",
    level: float = LEVEL,
) -> pd.DataFrame:
    """The tidy curves of an evaluation: a row for each metric and k.

    Args:
        frame: rows of samples.parquet (:data:`COLUMNS`).
        parameters: of the model; of a mixture of experts, those active.
        metrics: among avg@k, pass@k, pass^k, maj@k, best@k.
        ks: samples a question; None: 1, 2, 4, ... and the fewest samples that a question has.
        ties: rule of maj@k.

    Returns:
        Columns metric, k, n (questions), value, low, high, tokens (of a question's prompt and k
        responses), flops (of those tokens), seconds (summed over the k samples: time of one after
        another, which samples drawn at once share).

    Raises:
        ConfigError: a column is missing, there is no row, a sample is there twice, a question has
            fewer than k samples, or a metric is unknown.
    """
    curves = question_curves(frame, parameters, metrics=metrics, ks=ks, ties=ties)
    return curve_table(curves, level=level)


def curve_table(curves: QuestionCurves, *, level: float = LEVEL) -> pd.DataFrame:
    """:func:`scaling_curve` of questions already scored.

    The band is, at each k by itself, the interval that a table would show for that score
    (:func:`evals.clusters.share_interval`, over clusters).
    """
    per_token = FLOPS_PER_PARAMETER * curves.parameters
    prompt, tokens = curves.prompt_tokens_Q.mean(), curves.tokens_Q.mean()
    seconds = curves.seconds_Q.mean()
    rows = []
    for metric, scores_QK in curves.scores_QK.items():
        for k, values_Q in zip(curves.ks, scores_QK.T, strict=True):
            score = question_score(values_Q.tolist(), curves.clusters, level=level)
            rows.append(
                {
                    "metric": metric,
                    "k": k,
                    "n": len(curves.questions),
                    "value": score.value,
                    "low": score.low,
                    "high": score.high,
                    "tokens": prompt + k * tokens,
                    "flops": (prompt + k * tokens) * per_token,
                    "seconds": k * seconds,
                }
            )
    return pd.DataFrame(rows)


def question_curves(
    frame: pd.DataFrame,
    parameters: float,
    *,
    metrics: Sequence[str] = METRICS,
    ks: Sequence[int] | None = None,
    ties: Ties = "fractional",
) -> QuestionCurves:
    """Every metric of every question at every k. Arguments and errors: :func:`scaling_curve`."""
    _check(frame, parameters, metrics)
    ordered = frame.sort_values(["question_id", "sample"], kind="stable")
    groups = {str(name): rows for name, rows in ordered.groupby("question_id", sort=True)}
    sizes = {name: len(rows) for name, rows in groups.items()}
    fewest = min(sizes.values())
    grid = tuple(sorted(set(ks))) if ks is not None else powers_of_two(fewest)
    if not grid or grid[0] < 1 or grid[-1] > fewest:
        short = min(sizes, key=lambda name: sizes[name])
        raise ConfigError(
            f"k must be 1 to {fewest}: question {short} has {fewest} samples (asked: "
            f"{', '.join(map(str, grid)) or 'none'}); draw more samples or ask for smaller k"
        )
    scores: dict[str, FloatArray] = {
        metric: np.array([_question(rows, metric, grid, ties) for rows in groups.values()])
        for metric in metrics
    }

    def means(column: str) -> FloatArray:
        return np.array([float(rows[column].mean()) for rows in groups.values()])

    clusters = None
    if "cluster" in frame.columns:
        clusters = [str(rows["cluster"].iloc[0]) for rows in groups.values()]
    return QuestionCurves(
        questions=list(groups),
        clusters=clusters,
        ks=grid,
        samples=(fewest, max(sizes.values())),
        scores_QK=scores,
        average_Q=means("correct"),
        tokens_Q=means("tokens"),
        seconds_Q=means("seconds"),
        prompt_tokens_Q=means("prompt_tokens")
        if "prompt_tokens" in frame.columns
        else np.zeros(len(groups)),
        parameters=float(parameters),
    )


def over_seeds(curves: Sequence[QuestionCurves]) -> QuestionCurves:
    """The mean over models that differ in their seed alone: each question's scores and costs.

    Raises:
        ConfigError: they answer other questions, or have other numbers of samples.
    """
    first = curves[0]
    for other in curves[1:]:
        if (other.questions, other.ks) != (first.questions, first.ks):
            raise ConfigError("the seeds answer other questions, or other numbers of samples")

    def mean(arrays: Sequence[FloatArray]) -> FloatArray:
        return np.asarray(np.mean(arrays, axis=0))

    return replace(
        first,
        samples=(min(c.samples[0] for c in curves), max(c.samples[1] for c in curves)),
        scores_QK={name: mean([c.scores_QK[name] for c in curves]) for name in first.scores_QK},
        average_Q=mean([c.average_Q for c in curves]),
        tokens_Q=mean([c.tokens_Q for c in curves]),
        seconds_Q=mean([c.seconds_Q for c in curves]),
        prompt_tokens_Q=mean([c.prompt_tokens_Q for c in curves]),
    )


def powers_of_two(n: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to n, and n itself."""
    return tuple(sorted({2**i for i in range(n.bit_length())} | {n}))


def _question(rows: pd.DataFrame, metric: str, ks: Sequence[int], ties: Ties) -> list[float]:
    correct = [bool(value) for value in rows["correct"]]
    n, c = len(correct), sum(correct)
    if metric == "avg@k":
        return [avg_at_k(n, c)] * len(ks)
    if metric == "pass@k":
        return [pass_at_k(n, c, k) for k in ks]
    if metric == "pass^k":
        return [pass_hat_k(n, c, k) for k in ks]
    if metric == "best@k":
        scores = [None if pd.isna(score) else float(score) for score in rows["score"]]
        return [best_at_k(scores, correct, k) for k in ks]
    votes = [_vote(vote, right) for vote, right in zip(rows["vote"], correct, strict=True)]
    return [majority_at_k(votes, _RIGHT, k, ties) for k in ks]


def _vote(vote: Any, right: bool) -> str | None:
    # Right answers are one class whatever the label says, as in evals.scores.
    return _RIGHT if right else None if pd.isna(vote) else f"wrong {vote}"


def _check(frame: pd.DataFrame, parameters: float, metrics: Sequence[str]) -> None:
    known = (*METRICS, "pass^k", "best@k")
    if unknown := [metric for metric in metrics if metric not in known]:
        raise ConfigError(f"no curve of {', '.join(unknown)}; there are {', '.join(known)}")
    wanted = [*COLUMNS, *(["score"] if "best@k" in metrics else [])]
    if missing := [column for column in wanted if column not in frame.columns]:
        raise ConfigError(f"the samples have no column {', '.join(missing)}; evaluate again")
    if frame.empty:
        raise ConfigError("there are no samples to draw a curve from")
    twice = frame.duplicated(["question_id", "sample"])
    if twice.any():
        first = frame[twice].iloc[0]
        raise ConfigError(
            f"sample {first['sample']} of question {first['question_id']} is there twice"
        )
    if not parameters > 0:
        raise ConfigError(f"a model has more than {parameters} parameters")
