"""Scores at equal budgets: what every method reaches with what the cheapest of them spent in all.

A final score compares runs of different cost: a distillation step has a teacher to pay, DAPO draws
rollouts that it throws away. So each curve is read where it has cost the same, linearly between
checkpoints, from the untaught student at no cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evals.report.statistics import Curve, Estimate, FloatArray, over_seeds
from evals.stats import Interval

BUDGET_UNITS = ("samples", "tokens", "flops", "seconds")


@dataclass(frozen=True)
class Budget:
    """One unit of cost. A method that has no such cost, or did not log it, is not in it.

    Args:
        amount: the smallest final cost of any method, mean over seeds.
        scores: of each method at that cost.
        versus: the same minus the baseline's; without the baseline.
    """

    unit: str
    amount: float
    scores: dict[str, Interval]
    versus: dict[str, Interval]


def equal_budget(
    unit: str, curves: Mapping[str, Curve], start: Estimate, baseline: str
) -> Budget | None:
    """None where fewer than two methods have a cost in the unit.

    Args:
        curves: of the methods, in that unit.
        start: score of the student that all curves begin at.
    """
    if len(curves) < 2:
        return None
    costs = {name: curve.costs_SC.mean(axis=0) for name, curve in curves.items()}
    amount = min(float(cost_C[-1]) for cost_C in costs.values())
    at = {name: _read(curve, costs[name], start, amount) for name, curve in curves.items()}
    reference = at.get(baseline)
    return Budget(
        unit=unit,
        amount=amount,
        scores={name: each.interval() for name, each in at.items()},
        versus={
            name: (each - reference).interval()
            for name, each in at.items()
            if reference is not None and name != baseline
        },
    )


def _read(curve: Curve, costs_C: FloatArray, start: Estimate, amount: float) -> Estimate:
    """The curve at a cost."""
    points = np.concatenate([[0.0], costs_C])
    after = int(np.clip(np.searchsorted(points, amount), 1, len(points) - 1))
    share = (amount - points[after - 1]) / (points[after] - points[after - 1])
    values_S, draws_BS = curve.scores_SC[:, after - 1], curve.draws_BSC[:, :, after - 1]
    if after == 1:
        before_S: FloatArray | float = start.value
        before_BS = start.draws_B[:, None]
    else:
        before_S, before_BS = curve.scores_SC[:, after - 2], curve.draws_BSC[:, :, after - 2]
    return over_seeds(
        curve.method,
        (1 - share) * before_S + share * values_S,
        (1 - share) * before_BS + share * draws_BS,
        curve.weights_BS,
        curve.units,
    )


def budget_csv(budgets: Mapping[str, Sequence[Budget]]) -> pd.DataFrame:
    """budgets.csv: a row a benchmark, unit and method; `difference` is to the baseline.

    Args:
        budgets: by benchmark.
    """
    rows = []
    for benchmark, found in budgets.items():
        for budget in found:
            for method, score in budget.scores.items():
                versus = budget.versus.get(method)
                limits = (versus.value, versus.low, versus.high) if versus else (None,) * 3
                rows.append(
                    (benchmark, budget.unit, budget.amount, method, score.value, score.low,
                     score.high, *limits)
                )  # fmt: skip
    columns = "benchmark unit budget method value low high difference diff_low diff_high"
    return pd.DataFrame(rows, columns=columns.split())
