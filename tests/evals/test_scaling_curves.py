"""Scaling curves and their figures against sums by hand."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from evals.clusters import question_score
from evals.scaling import best_at_k, majority_at_k, pass_at_k, pass_hat_k
from evals.scaling.curves import powers_of_two, question_curves, scaling_curve
from evals.scaling.plots import scaling_plot
from reopold.config import ConfigError


def frame(**extra: list[Any]) -> pd.DataFrame:
    """Two questions of four samples: right, right, wrong 1, wrong 1; right, wrong 1, none, none."""
    votes = ["right", "right", "wrong 1", "wrong 1", "right", "wrong 1", None, None]
    columns = {
        "question_id": ["a"] * 4 + ["b"] * 4,
        "sample": [0, 1, 2, 3] * 2,
        "vote": votes,
        "correct": [vote == "right" for vote in votes],
        "tokens": [10, 20, 30, 40, 100, 100, 100, 100],
        "seconds": [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0],
        **extra,
    }
    return pd.DataFrame(columns)


def cell(table: pd.DataFrame, metric: str, k: int, column: str) -> float:
    row = table[(table["metric"] == metric) & (table["k"] == k)]
    assert len(row) == 1
    return float(row[column].iloc[0])


def test_scores_are_means_over_questions() -> None:
    table = scaling_curve(frame(), 5.0, metrics=["avg@k", "pass@k", "pass^k", "maj@k"])
    assert sorted(set(table["k"])) == [1, 2, 4] and set(table["n"]) == {2}
    a, b = ["r", "r", "w", "w"], ["r", "w", None, None]
    for k in (1, 2, 4):
        assert cell(table, "avg@k", k, "value") == pytest.approx((0.5 + 0.25) / 2)
        passed = (pass_at_k(4, 2, k) + pass_at_k(4, 1, k)) / 2
        assert cell(table, "pass@k", k, "value") == pytest.approx(passed)
        every = (pass_hat_k(4, 2, k) + pass_hat_k(4, 1, k)) / 2
        assert cell(table, "pass^k", k, "value") == pytest.approx(every)
        voted = [majority_at_k(a, "r", k), majority_at_k(b, "r", k)]
        assert cell(table, "maj@k", k, "value") == pytest.approx(sum(voted) / 2)
        interval = question_score(voted)
        assert cell(table, "maj@k", k, "low") == interval.low
        assert cell(table, "maj@k", k, "high") == interval.high


def test_costs_are_those_of_k_samples_of_the_mean_question() -> None:
    table = scaling_curve(frame(), 5.0)
    for k in (1, 2, 4):
        # Questions need 25 and 100 tokens, 1 and 3 seconds a sample.
        assert cell(table, "maj@k", k, "tokens") == pytest.approx(62.5 * k)
        assert cell(table, "maj@k", k, "flops") == pytest.approx(2 * 5.0 * 62.5 * k)
        assert cell(table, "maj@k", k, "seconds") == pytest.approx(2.0 * k)
    prompts = scaling_curve(frame(prompt_tokens=[7] * 4 + [9] * 4), 5.0)
    for k in (1, 4):  # the prompt is read once, however many samples follow it
        assert cell(prompts, "maj@k", k, "tokens") == pytest.approx(8 + 62.5 * k)
        assert cell(prompts, "maj@k", k, "flops") == pytest.approx(2 * 5.0 * (8 + 62.5 * k))


def test_best_of_k_needs_scores() -> None:
    scores = [0.1, 0.9, 0.5, 0.5, 0.2, 0.8, None, None]
    table = scaling_curve(frame(score=scores), 1.0, metrics=["best@k"])
    expected = [
        best_at_k([0.1, 0.9, 0.5, 0.5], [True, True, False, False], 2),
        best_at_k([0.2, 0.8, None, None], [True, False, False, False], 2),
    ]
    assert cell(table, "best@k", 2, "value") == pytest.approx(sum(expected) / 2)
    with pytest.raises(ConfigError, match="no column score"):
        scaling_curve(frame(), 1.0, metrics=["best@k"])


def test_rows_may_come_in_any_order() -> None:
    shuffled = frame().sample(frac=1.0, random_state=3)
    for ties in ("fractional", "first", "loss"):
        one = scaling_curve(frame(), 1.0, ties=ties)  # type: ignore[arg-type]
        other = scaling_curve(shuffled, 1.0, ties=ties)  # type: ignore[arg-type]
        pd.testing.assert_frame_equal(one, other)
    first = scaling_curve(frame(), 1.0, ties="first", metrics=["maj@k"], ks=[4])
    assert float(first["value"].iloc[0]) == 1.0  # both right ones came first


def test_a_right_answer_without_a_label_is_a_right_vote() -> None:
    rows = frame()
    rows["vote"] = rows["vote"].mask(rows["correct"])
    pd.testing.assert_frame_equal(scaling_curve(rows, 1.0), scaling_curve(frame(), 1.0))


def test_questions_of_a_cluster_widen_the_band() -> None:
    many = pd.concat(
        [frame().assign(question_id=frame()["question_id"] + str(i)) for i in range(10)]
    )
    figures = many["question_id"].str[:1]
    alone, grouped = scaling_curve(many, 1.0), scaling_curve(many.assign(cluster=figures), 1.0)
    assert (grouped["high"] - grouped["low"] > 1.5 * (alone["high"] - alone["low"])).all()
    pd.testing.assert_series_equal(grouped["value"], alone["value"])


def test_unequal_numbers_of_samples() -> None:
    short = frame().iloc[:-1]  # question b has three
    curves = question_curves(short, 1.0)
    assert curves.ks == (1, 2, 3) and curves.samples == (3, 4)
    # Question a's own four samples serve its estimate at k = 3.
    assert curves.scores_QK["pass@k"][0].tolist() == [pass_at_k(4, 2, k) for k in (1, 2, 3)]
    assert curves.scores_QK["pass@k"][1].tolist() == [pass_at_k(3, 1, k) for k in (1, 2, 3)]
    with pytest.raises(ConfigError, match=r"k must be 1 to 3: question b has 3 samples"):
        scaling_curve(short, 1.0, ks=[1, 4])


@pytest.mark.parametrize(
    ("n", "ks"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (64, (1, 2, 4, 8, 16, 32, 64))]
)
def test_grid_of_k(n: int, ks: tuple[int, ...]) -> None:
    assert powers_of_two(n) == ks


def test_senseless_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="no column vote, seconds"):
        scaling_curve(frame().drop(columns=["vote", "seconds"]), 1.0)
    with pytest.raises(ConfigError, match="no samples"):
        scaling_curve(frame().iloc[:0], 1.0)
    with pytest.raises(ConfigError, match="sample 0 of question a is there twice"):
        scaling_curve(pd.concat([frame(), frame().iloc[:1]]), 1.0)
    with pytest.raises(ConfigError, match=r"no curve of mean@k"):
        scaling_curve(frame(), 1.0, metrics=["mean@k"])
    for ks in ([0, 1], []):
        with pytest.raises(ConfigError, match="k must be 1 to 4"):
            scaling_curve(frame(), 1.0, ks=ks)
    for parameters in (0.0, math.nan):
        with pytest.raises(ConfigError, match="parameters"):
            scaling_curve(frame(), parameters)


@pytest.mark.parametrize("x", ["k", "flops"])
def test_figures_are_the_same_byte_for_byte(x: Any) -> None:
    curves = {"student": scaling_curve(frame(), 1.5e9), "teacher": scaling_curve(frame(), 7e9)}
    plot = scaling_plot(curves, "maj@k", x, targets={"teacher, k = 1": 0.4})
    again = scaling_plot(curves, "maj@k", x, targets={"teacher, k = 1": 0.4})
    assert plot == again
    assert "<dc:date>" not in plot.svg
    ElementTree.fromstring(plot.svg)
    for text in ("student", "teacher", "teacher, k = 1", "maj@k, %"):
        assert f">{text}</text>" in plot.svg


def test_figures_tell_curves_apart_without_colour() -> None:
    curves = {name: scaling_curve(frame(), 1.0) for name in "abcdef"}
    plot = scaling_plot(curves, "maj@k")
    assert plot.svg.count("stroke-dasharray") >= 5
    colours = set(re.findall(r"#[0-9a-f]{6}", plot.svg))
    assert all(c[1:3] == c[3:5] == c[5:7] for c in colours)  # greys
    with pytest.raises(ConfigError, match="1 to 6 curves, not 7"):
        scaling_plot(curves | {"g": curves["a"]}, "maj@k")
    with pytest.raises(ConfigError, match="curve of a has no best@k"):
        scaling_plot(curves, "best@k")


def test_captions_say_what_is_shown() -> None:
    plot = scaling_plot({"student": scaling_curve(frame(), 1.0)}, "maj@k")
    assert "n = 2 questions for k = 1, 2, 4" in plot.caption
    assert "95 % interval over questions" in plot.caption
    assert "student: 37.5 % at k = 1" in plot.caption
