"""Rows and CSV files against the run directories, read a second time by other means."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import Synthetic, write_evaluation, write_run

from evals.report.analysis import Analysis, analyse, curve_table, score_table
from evals.report.study import load_study

Make = Callable[[Synthetic], Path]


def analysis_of(study_dir: Path) -> Analysis:
    return analyse(load_study(study_dir), "micro_maths")


def accuracy(study_dir: Path, run: str, step: int = 12) -> pd.Series[float]:
    """Share of right samples by question, straight from the file."""
    folder = study_dir / "runs" / run / "eval" / f"step-{step:06d}" / "micro_maths"
    samples = pd.read_parquet(folder / "samples.parquet")
    return samples.groupby("question_id")["correct"].mean().astype(float)


def test_scores_gains_and_gap_are_the_files_means(finished_study: Path) -> None:
    row = analysis_of(finished_study).row("reopold")
    assert row is not None
    assert row.gain is not None
    assert row.gap is not None
    student = accuracy(finished_study, "student").mean()
    teacher = accuracy(finished_study, "teacher").mean()
    seeds = [accuracy(finished_study, f"reopold-s{seed}").mean() for seed in (1, 2, 3)]
    grpo = np.mean([accuracy(finished_study, f"grpo-s{seed}").mean() for seed in (1, 2, 3)])
    assert row.per_seed == pytest.approx(seeds)
    assert row.score.value == pytest.approx(np.mean(seeds))
    assert row.gain.value == pytest.approx(np.mean(seeds) - student)
    assert row.gap.value == pytest.approx((np.mean(seeds) - student) / (teacher - student))
    assert row.versus["grpo"].value == pytest.approx(np.mean(seeds) - grpo)
    assert list(row.versus) == ["grpo", "opd"]


def test_rows_keep_the_order_of_the_study(make_study: Make) -> None:
    folder = make_study(Synthetic(methods=("grpo", "reopold"), seeds=(3, 1)))
    analysis = analysis_of(folder)
    assert [row.method for row in analysis.methods] == ["student", "grpo", "reopold", "teacher"]
    assert analysis.methods[1].seeds == [3, 1]


def test_pairing_narrows_the_gain(finished_study: Path) -> None:
    """Verdicts of one question go together, so the paired interval is the narrower one."""
    analysis = analysis_of(finished_study)
    row, student = analysis.row("reopold"), analysis.row("student")
    assert row is not None
    assert row.gain is not None
    assert student is not None
    unpaired = np.hypot(row.score.high - row.score.low, student.score.high - student.score.low)
    assert row.gain.high - row.gain.low < 0.8 * unpaired


def test_scores_csv_has_a_row_a_checkpoint_and_metric(finished_study: Path) -> None:
    table = score_table(load_study(finished_study))
    assert ",".join(table.columns) == (
        "family,method,seed,checkpoint_step,benchmark,metric,n,k,value,low,high"
    )
    # reopold's switch at 6 is a checkpoint too: 4, 6, 8, 12; the others have 4, 8, 12.
    assert len(table) == 3 * (2 + 3 * (4 + 3 + 3))
    for _, row in table.iterrows():
        name = row.method if row.method in ("student", "teacher") else f"{row.method}-s{row.seed}"
        folder = finished_study / f"runs/{name}/eval/step-{row.checkpoint_step:06d}/micro_maths"
        scores = json.loads((folder / "results.json").read_text())["scores"]
        (score,) = [score for score in scores if score["metric"] == row.metric]
        assert (row.value, row.low, row.high) == (score["value"], score["low"], score["high"])


def test_only_the_last_checkpoint_of_a_reference_counts(make_study: Make) -> None:
    what = Synthetic(methods=("grpo",), seeds=(1,))
    folder = make_study(what)
    write_run(folder, what, what.run("student", "sft", 0), {6: -1.0, 12: 0.2})
    study = load_study(folder)
    scores = score_table(study)
    assert scores[scores["method"] == "student"]["checkpoint_step"].unique().tolist() == [12]
    starts = curve_table(study)[lambda table: table["samples"] == 0]
    assert starts["value"].iloc[0] == pytest.approx(accuracy(folder, "student").mean())


def test_every_curve_starts_at_the_student(finished_study: Path) -> None:
    table = curve_table(load_study(finished_study))
    assert ",".join(table.columns) == (
        "family,method,seed,checkpoint_step,samples,rollouts,tokens,teacher_tokens,prefill_tokens,"
        "flops,device_seconds,seconds,benchmark,metric,value,low,high"
    )
    assert not table["method"].isin(["student", "teacher"]).any()
    average = table[table["metric"] == "avg@k"]
    starts = average[average["samples"] == 0]
    assert len(starts) == 9
    assert starts["value"].unique() == pytest.approx([accuracy(finished_study, "student").mean()])
    last = average[(average["method"] == "opd") & (average["checkpoint_step"] == 12)]
    assert last["samples"].unique().tolist() == [12 * 32]
    assert last["tokens"].unique().tolist() == [32 * 4 * (18 + 19 + 20)]


def test_wall_clock_is_summed_over_steps(finished_study: Path) -> None:
    cost = load_study(finished_study).of("reopold")[0].cost(8)
    known = {"steps": 8, "samples": 256, "tokens": 4832, "seconds": 8 * 0.6}
    assert {unit: cost[unit] for unit in known} == pytest.approx(known)
    assert cost["device_seconds"] == pytest.approx(8 * 0.6)  # one device
    assert math.isnan(cost["flops"])  # runs of before they were counted


def test_a_perfect_score_still_has_an_interval(make_study: Make) -> None:
    what = Synthetic(methods=("grpo",), seeds=(1,))
    folder = make_study(what)
    run = folder / "runs" / "teacher"
    place = run / "eval/step-000012/micro_maths"
    write_evaluation(place, what.run("teacher", "sft", 0), 12, np.ones((40, 4)))
    row = analysis_of(folder).row("teacher")
    assert row is not None
    assert (row.score.value, row.score.high) == (1.0, 1.0)
    assert 0.9 < row.score.low < 1.0


def test_no_gap_is_claimed_where_the_teacher_is_no_better(make_study: Make) -> None:
    folder = make_study(Synthetic(methods=("reopold",), seeds=(1,)))
    for part in ("eval/step-000012/micro_maths",):
        source, target = folder / "runs/student" / part, folder / "runs/teacher" / part
        shutil.rmtree(target)
        shutil.copytree(source, target)
    row = analysis_of(folder).row("reopold")
    assert row is not None
    assert row.gap is None


def test_only_shared_questions_are_compared(make_study: Make) -> None:
    what = Synthetic(methods=("grpo",), seeds=(1,))
    folder = make_study(what)
    fewer = replace(what, questions=30)
    write_run(folder, fewer, what.run("teacher", "sft", 0), {12: 2.3})
    analysis = analysis_of(folder)
    row = analysis.row("grpo")
    assert row is not None
    shared = accuracy(folder, "teacher").index
    assert analysis.n == 30
    assert row.per_seed == pytest.approx([accuracy(folder, "grpo-s1").loc[shared].mean()])
    assert any("30 of 40" in note for note in analysis.notes)


def test_efficiency_uses_checkpoints_that_all_seeds_have(make_study: Make) -> None:
    folder = make_study(Synthetic(methods=("opd", "grpo"), seeds=(1, 2)))
    shutil.rmtree(folder / "runs/opd-s2/eval/step-000008")
    (row,) = analysis_of(folder).efficiency
    assert row.checkpoints == [4, 12]


def test_unlogged_costs_are_left_out(make_study: Make) -> None:
    folder = make_study(Synthetic(methods=("opd", "grpo"), seeds=(1,)))
    (folder / "runs/opd-s1/metrics.jsonl").unlink()
    (row,) = analysis_of(folder).efficiency
    assert list(row.units) == ["samples", "steps"]
