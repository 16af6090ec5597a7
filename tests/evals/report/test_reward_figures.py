"""Figures c and e, from diagnostics small enough to be counted by hand."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic import Synthetic

from evals.report import build_report
from evals.report.rewards import (
    Stretch,
    entropy_figures,
    entropy_table,
    reward_figures,
    reward_table,
    stretches,
)
from evals.report.study import load_study

Make = Callable[[Synthetic], Path]

#: 20 steps: a tenth is 2 of them. Floor of R, nats.
STEPS, FLOOR = 20, -1.5
#: Place in reward_counts of R below -12, of [-1.5, -1.25), of [0, 0.25) and of 4 and more.
BELOW, AT_FLOOR, AT_ZERO, ABOVE = 0, 43, 49, 65


def line(
    step: int, counts: dict[int, int], small: float, abs_D: Sequence[float] = ()
) -> dict[str, Any]:
    """One of diagnostics.jsonl, with shares that add up to 1."""
    total = sum(abs_D)
    return {
        "step": step,
        "floor": FLOOR,
        "reward_counts": [counts.get(place, 0) for place in range(66)],
        "small_fraction": small,
        "abs_reward_by_entropy": list(abs_D),
        "abs_share_by_entropy": [value / total for value in abs_D],
    }


RISING, FLAT = [0.1 * part for part in range(1, 11)], [0.5] * 10
#: Of two seeds. Steps 5 and 17 are in no tenth that is drawn.
DIAGNOSTICS = {
    1: [
        line(0, {BELOW: 2, AT_ZERO: 6}, 0.5, FLAT),
        line(1, {AT_FLOOR: 2}, 0.0),
        line(5, {ABOVE: 1000}, 0.0, [9.0] * 10),
        line(9, {AT_ZERO: 10}, 1.0, FLAT),
        line(17, {ABOVE: 1000}, 0.0, [9.0] * 10),
        line(18, {AT_FLOOR: 5, AT_ZERO: 15}, 0.75, RISING),
        line(19, {AT_ZERO: 20}, 1.0, RISING),
    ],
    2: [
        line(0, {AT_ZERO: 10}, 1.0, FLAT),
        line(19, {ABOVE: 10}, 0.0, FLAT),
    ],
}


def with_diagnostics(folder: Path) -> Path:
    for seed, lines in DIAGNOSTICS.items():
        run = folder / "runs" / f"opd-s{seed}"
        text = "".join(json.dumps(each) + "\n" for each in lines)
        (run / "diagnostics.jsonl").write_text(text, encoding="utf-8")
        metrics = [json.loads(each) for each in (run / "metrics.jsonl").read_text().splitlines()]
        for each in metrics:  # 0.01, 0.02, ... of seed 1, ten times that of seed 2
            each["train/clip_fraction"] = 0.01 * (each["step"] + 1) * (10 if seed == 2 else 1)
        text = "".join(json.dumps(each) + "\n" for each in metrics)
        (run / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def folder(make_study: Make) -> Path:
    what = Synthetic(methods=("opd", "grpo"), seeds=(1, 2), steps=STEPS, every=STEPS, questions=12)
    return with_diagnostics(make_study(what))


@pytest.fixture
def found(folder: Path) -> list[Stretch]:
    return stretches(load_study(folder))


def shares(stretch: Stretch) -> dict[int, float]:
    return {place: share for place, share in enumerate(stretch.share_E.tolist()) if share}


def test_the_tenths_are_the_first_the_middle_and_the_last(found: list[Stretch]) -> None:
    steps = {each.when: each.steps for each in found}
    assert steps == {"first": (0, 1), "middle": (9, 10), "last": (18, 19)}
    assert {each.arm for each in found} == {"opd"}  # grpo has no teacher, so no R
    assert [each.tokens for each in found] == [8 + 2 + 10, 10, 20 + 20 + 10]
    assert {each.floor for each in found} == {FLOOR}


def test_tokens_are_pooled_over_steps_and_seeds(found: list[Stretch]) -> None:
    first, middle, last = found
    assert shares(first) == pytest.approx({BELOW: 2 / 20, AT_FLOOR: 2 / 20, AT_ZERO: 16 / 20})
    assert shares(middle) == {AT_ZERO: 1.0}
    assert shares(last) == pytest.approx({AT_FLOOR: 5 / 50, AT_ZERO: 35 / 50, ABOVE: 10 / 50})


def test_small_rewards_are_a_share_of_tokens_not_of_steps(found: list[Stretch]) -> None:
    first, middle, last = (each.small for each in found)
    assert first == pytest.approx((0.5 * 8 + 0.0 * 2 + 1.0 * 10) / 20)
    assert middle == 1.0
    assert last == pytest.approx((0.75 * 20 + 1.0 * 20 + 0.0 * 10) / 50)


def test_the_clipped_share_is_what_the_trainer_counted(found: list[Stretch]) -> None:
    first, middle, last = (each.clipped for each in found)
    assert first == pytest.approx((0.01 + 0.02 + 0.1 + 0.2) / 4)
    assert middle == pytest.approx((0.10 + 0.11 + 1.0 + 1.1) / 4)
    assert last == pytest.approx((0.19 + 0.20 + 1.9 + 2.0) / 4)


def test_parts_by_entropy_leave_out_steps_too_short_to_cut(found: list[Stretch]) -> None:
    first, _, last = found
    assert first.abs_D.tolist() == FLAT  # step 1 has two tokens and no tenths
    wanted = [(0.1 * part * 2 + 0.5) / 3 for part in range(1, 11)]
    assert last.abs_D == pytest.approx(wanted)
    wanted = [(part / 55 * 2 + 0.1) / 3 for part in range(1, 11)]
    assert last.abs_share_D == pytest.approx(wanted)
    assert last.abs_share_D.sum() == pytest.approx(1.0)


def test_the_tables_of_the_report(folder: Path) -> None:
    build_report(folder)
    rewards = pd.read_csv(folder / "report/rewards.csv")
    last = rewards[rewards["stretch"] == "last"]
    assert last["bin_low"].to_list() == [-1.5, 0.0, 4.0]
    assert last["share"].to_list() == pytest.approx([0.1, 0.7, 0.2])
    first = rewards[rewards["stretch"] == "first"]
    assert first["bin_low"].to_list() == [-math.inf, -1.5, 0.0]
    assert rewards["small_fraction"].unique() == pytest.approx([0.7, 1.0])
    entropy = pd.read_csv(folder / "report/entropy.csv")
    top = entropy[(entropy["stretch"] == "last") & (entropy["entropy_tenth"] == 10)].iloc[0]
    assert top["mean_abs_reward"] == pytest.approx(2.5 / 3, abs=1e-6)
    assert top["share_of_abs_reward"] == pytest.approx((20 / 55 + 0.1) / 3, abs=1e-6)


def test_the_figures_say_what_they_show(folder: Path, found: list[Stretch]) -> None:
    (histogram,) = reward_figures(found)
    assert histogram.title == (
        "Reward R of opd, histogram. In the last tenth of the steps 70 % of the tokens have "
        "|R| below 0.01, 107.25 % below the floor."
    )
    assert texts(histogram.svg) >= {"opd", "R, nats", "% of tokens", "floor -1.50"}
    mean, share = entropy_figures(load_study(folder), found)
    assert mean.title.endswith("In the tenth of highest entropy: opd 0.833.")
    assert share.title.endswith("In the tenth of highest entropy: opd 15.5.")
    assert texts(share.svg) >= {"1", "10", "share of the total |R|, %"}


def test_floor_and_bins_are_drawn_on_the_axis(found: list[Stretch]) -> None:
    """The outermost steps of the histogram are the bins of below -12 and of 4 and more."""
    svg = reward_figures(found)[0].svg
    at = ticks(svg)
    left, right = min(at), max(at)
    nat = (at[right] - at[left]) / (right - left)

    def place(reward: float) -> float:
        return at[left] + (reward - left) * nat

    lines = re.findall(r'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \n"', svg)
    upright = [float(x) for x, other in lines if x == other]
    assert any(abs(x - place(FLOOR)) < 0.05 for x in upright)
    drawn = [re.findall(r"[ML] ([\d.]+) ", path) for path in re.findall(r' d="(M [^"z]*)"', svg)]
    first, middle, last = (sorted(map(float, xs)) for xs in drawn if len(xs) > 2)
    ends = (first[0], first[-1], last[0], last[-1])
    # The last bin on either side is open: its line ends in the middle of a bin's width.
    assert ends == pytest.approx([place(r) for r in (-12.125, 0.25, -1.5, 4.125)], abs=0.05)
    assert (middle[0], middle[-1]) == pytest.approx((place(0.0), place(0.25)), abs=0.05)


def test_without_diagnostics_there_is_no_figure(make_study: Make) -> None:
    folder = make_study(Synthetic(methods=("opd",), seeds=(1,), questions=12))
    assert stretches(load_study(folder)) == []
    file = folder / "runs/opd-s1/diagnostics.jsonl"
    file.write_text("torn\n{}\n", encoding="utf-8")
    study = load_study(folder)
    assert stretches(study) == []
    assert reward_figures([]) == entropy_figures(study, []) == []
    assert len(reward_table([])) == len(entropy_table([])) == 0


def texts(svg: str) -> set[str]:
    return {text.replace("−", "-") for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)}


def ticks(svg: str) -> dict[int, float]:
    """x of the labelled marks of the x axis."""
    axis = svg[svg.index("matplotlib.axis_1") : svg.index("matplotlib.axis_2")]
    groups = axis.split("xtick_")[1:]
    found = {}
    for group in groups:
        x = re.search(r'<use [^>]*x="([\d.]+)"', group)
        label = re.search(r"<text[^>]*>([^<]*)</text>", group)
        assert x and label
        found[int(label.group(1).replace("−", "-"))] = float(x.group(1))
    return found
