"""Sweeps, the ablation grid and other teachers: figures (f) to (i) and their CSV, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pandas as pd
import pytest
from synthetic import Synthetic, write_study

from evals.report.build import build_report
from reopold.study_config import Sweep

GRID = Sweep(
    name="grid",
    over=["objective.clip=[true, false]", "objective.mask=[none, entropy, random]"],
)
WHAT = Synthetic(
    methods=("reopold", "grpo"),
    seeds=(1, 2),
    sweeps=(
        GRID,
        Sweep(name="lam_mixture", over=["objective.lam=[0.1, 0.3]"]),
        Sweep(name="lam_odds", over=["objective.lam=[0.1, 0.3]"], set=["objective.floor=odds"]),
        Sweep(name="temperature", over=["sampling.temperature=[0.6, 1.0]"], seeds=[1]),
    ),
    teachers=("small",),
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_study(tmp_path_factory.mktemp("sweeps") / "study", WHAT)
    build_report(folder)
    return folder


@pytest.fixture(scope="module")
def table(study: Path) -> pd.DataFrame:
    return pd.read_csv(study / "report" / "sweeps.csv")


def by_hand(study: Path, arm: str, seeds: tuple[int, ...]) -> float:
    """Mean over seeds of avg@k as each last checkpoint's results have it."""
    scores = []
    for seed in seeds:
        folder = study / "runs" / f"{arm}-s{seed}" / "eval" / f"step-{WHAT.steps:06d}"
        results = json.loads((folder / "micro_maths" / "results.json").read_text("utf-8"))
        scores += [s["value"] for s in results["scores"] if s["metric"] == "avg@k"]
    assert len(scores) == len(seeds)
    return fmean(scores)


def test_points_are_the_scores_of_their_arms(study: Path, table: pd.DataFrame) -> None:
    swept = table[table["sweep"] != "teacher"]
    assert len(swept) == 6 + 2 + 2 + 2
    for row in swept.itertuples():
        seeds = (1,) if row.arm == "temperature-0.6" else (1, 2)
        assert row.seeds == len(seeds)
        assert row.value == pytest.approx(by_hand(study, row.arm, seeds), abs=1e-9)
        assert row.low <= row.value <= row.high
    # Of 12 points three are REOPOLD itself: entropy with the clip, lam 0.3, temperature 1.
    assert swept["arm"].nunique() == 10
    assert set(swept[swept["arm"] == "reopold"]["sweep"]) == {"grid", "lam_mixture", "temperature"}


def test_the_random_mask_is_a_point_of_the_grid(table: pd.DataFrame) -> None:
    grid = table[table["sweep"] == "grid"].set_index("point")
    random = grid.loc["objective.clip=true, objective.mask=random"]
    assert random["arm"] == "grid-true-random"
    assert {point.rpartition("=")[2] for point in grid.index} == {"none", "entropy", "random"}


def test_teachers_by_their_scores(study: Path, table: pd.DataFrame) -> None:
    teachers = table[table["sweep"] == "teacher"].set_index("point")
    assert set(teachers.index) == {"teacher", "teacher-small"}
    assert teachers.loc["teacher-small", "arm"] == "from_small"
    for point, arm in (("teacher", "reopold"), ("teacher-small", "from_small")):
        assert teachers.loc[point, "value"] == pytest.approx(by_hand(study, arm, (1, 2)), abs=1e-9)


def test_figures_say_their_points(study: Path) -> None:
    figures = study / "report" / "figures"
    grid = (figures / "sweep-clip-mask-micro_maths.svg").read_text(encoding="utf-8")
    assert "clip · random" in grid and "no clip · none" in grid
    assert "true" not in grid.partition("aria-label")[2].partition('"')[2].partition('"')[0]
    lam = (figures / "sweep-objective.lam-micro_maths.svg").read_text(encoding="utf-8")
    assert "lam_mixture" in lam and "lam_odds" in lam  # both forms of the floor share a figure
    assert (figures / "sweep-sampling.temperature-micro_maths.svg").exists()
    teachers = (figures / "teachers-micro_maths.svg").read_text(encoding="utf-8")
    assert "from_small ← teacher-small" in teachers
    page = (study / "report" / "index.html").read_text(encoding="utf-8")
    assert "Sweep: grid" in page and page.count("<svg") >= 4
