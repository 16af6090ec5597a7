"""Metrics of the visual benchmarks, against their definitions counted another way."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.benchmarks import visual_metrics as metrics
from evals.benchmarks.base import Graded, Problem, Tally
from evals.grading.verdict import Verdict
from reopold.config import ConfigError


def graded(row: dict[str, Any], *rights: bool) -> Graded:
    name = "-".join(map(str, row.values()))
    problem = Problem(id=name, messages=[], row=row, gold="")
    verdicts = [Verdict(right, "x", "ok" if right else "wrong") for right in rights]
    return Graded(problem, verdicts)


def total(tallies: Sequence[Tally]) -> dict[str, tuple[float, float]]:
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for tally in tallies:
        for name, (numerator, denominator) in tally.items():
            sums[name][0] += numerator
            sums[name][1] += denominator
    return {name: (n, d) for name, (n, d) in sums.items()}


def clustered(
    items: Sequence[Graded],
    cluster: Callable[[dict[str, Any]], str],
    tally: Callable[[Sequence[Graded]], Tally],
) -> dict[str, tuple[float, float]]:
    groups: dict[str, list[Graded]] = defaultdict(list)
    for item in items:
        groups[cluster(item.problem.row)].append(item)
    return total([tally(group) for group in groups.values()])


# We-Math


def group(name: str, *rounds: tuple[list[bool], bool]) -> list[Graded]:
    """A group of We-Math; of each round the one-step problems and the composite."""
    steps = len(rounds[0][0])
    keys = [f"{steps}steps_{n}" for n in range(1, steps + 1)]
    items = [
        graded({"ID": name, "key": key}, *(parts[i] for parts, _ in rounds))
        for i, key in enumerate(keys)
    ]
    return [*items, graded({"ID": name, "key": f"{steps}steps_multi"}, *(m for _, m in rounds))]


@pytest.mark.parametrize(
    ("parts", "composite", "counts"),
    [
        ([True, True], True, {"cm_strict", "cm_loose"}),
        ([True, False], True, {"cm_loose", "rm_strict_rate"}),
        ([False, False], True, {"rm_strict_rate", "rm_loose_rate"}),
        ([True, True], False, {"ig"}),
        ([True, False], False, {"ik"}),
        ([False, False, False], False, {"ik"}),
        ([True, True, True], True, {"cm_strict", "cm_loose"}),
        ([False, True, False], True, {"cm_loose", "rm_strict_rate"}),
    ],
)
def test_the_four_dimensions(parts: list[bool], composite: bool, counts: set[str]) -> None:
    tally = metrics.wemath_tally(group("g", (parts, composite)))
    kinds = ("ik", "ig", "cm_strict", "cm_loose", "rm_strict_rate", "rm_loose_rate")
    assert {name for name in kinds if tally[name][0]} == counts
    assert tally["rm_strict_rate"][1] == tally["rm_loose_rate"][1] == composite
    assert tally["s1"] == (sum(parts), len(parts))
    assert tally[f"s{len(parts)}"] == (composite, 1)


def test_the_published_example() -> None:
    """IK 164, IG 80, CM 185, RM 96 of 525: a score of 42.86 % and a rate of 34.16 %."""
    kinds = {
        "ik": (164, ([True, False], False)),
        "ig": (80, ([True, True], False)),
        "cm": (185, ([True, True], True)),
        "rm": (96, ([False, True], True)),
    }
    groups = [
        group(f"{name}{number}", outcome)
        for name, (count, outcome) in kinds.items()
        for number in range(count)
    ]
    found = total([metrics.wemath_tally(one) for one in groups])
    shares = {name: round(100 * n / d, 2) for name, (n, d) in found.items()}
    assert shares["score_strict"] == 42.86 and shares["rm_strict_rate"] == 34.16
    assert (shares["ik"], shares["ig"], shares["cm_strict"]) == (31.24, 15.24, 35.24)
    assert shares["rm_loose_rate"] == 0.0 and shares["cm_loose"] == 53.52
    assert shares["score_loose"] == round(100 * (281 + 40) / 525, 2)


OUTCOMES = st.integers(2, 3).flatmap(
    lambda n: st.tuples(st.lists(st.booleans(), min_size=n, max_size=n), st.booleans())
)


@given(st.lists(OUTCOMES, min_size=1, max_size=12))
def test_scores_are_what_the_failures_leave(outcomes: list[tuple[list[bool], bool]]) -> None:
    """The authors' form: all groups less half of IG, RM and IK."""
    n = len(outcomes)
    ik = sum(not all(p) and not m for p, m in outcomes)
    ig = sum(all(p) and not m for p, m in outcomes)
    rm = {
        "strict": sum(not all(p) and m for p, m in outcomes),
        "loose": sum(not any(p) and m for p, m in outcomes),
    }
    found = total([metrics.wemath_tally(group(str(i), o)) for i, o in enumerate(outcomes)])
    for mode, count in rm.items():
        assert found[f"score_{mode}"] == (n - 0.5 * ig - count - ik, n)
        assert found[f"rm_{mode}_rate"] == (count, sum(m for _, m in outcomes))


def test_several_samples_are_rounds() -> None:
    """Two rounds, each right in one problem only: nowhere is a group mastered."""
    tally = metrics.wemath_tally(group("g", ([True, False], True), ([False, True], True)))
    assert tally["cm_strict"] == (0, 2) and tally["cm_loose"] == (2, 2)
    assert tally["s1"] == (2, 4) and tally["s2"] == (2, 2)


def test_incomplete_groups_are_errors() -> None:
    whole = group("g", ([True, True], True))
    for items in (
        whole[:-1],
        whole[1:],
        [*whole, whole[0]],
        [graded({"ID": "g", "key": "x"}, True)],
    ):
        with pytest.raises(ConfigError, match="group g of We-Math"):
            metrics.wemath_tally(items)
    short = [*whole[:-1], graded(whole[-1].problem.row)]
    with pytest.raises(ConfigError, match=r"\[0, 1\] samples"):
        metrics.wemath_tally(short)


def test_order_within_a_group_does_not_matter() -> None:
    items = group("g", ([True, False, True], False))
    assert metrics.wemath_tally(items) == metrics.wemath_tally(items[::-1])


def test_published_groups_are_whole(benchmarks_dir: Path) -> None:
    rows = json.loads((benchmarks_dir / "wemath_NC" / "sample.json").read_text())
    found = clustered(
        [graded(row, True) for row in rows], metrics.wemath_cluster, metrics.wemath_tally
    )
    assert found["score_strict"] == (16, 16)
    assert (found["s1"][1], found["s2"][1], found["s3"][1]) == (38, 10, 6)


# HallusionBench


def question(figure: int, number: int, category: str = "VD", name: str = "0") -> dict[str, str]:
    return {
        "category": category,
        "subcategory": "chart",
        "set_id": name,
        "figure_id": str(figure),
        "question_id": str(number),
    }


def test_questions_figures_and_pairs() -> None:
    """Two figures with two questions, one of the four wrong."""
    wrong = (1, 0)
    items = [graded(question(f, q), (f, q) != wrong) for f in (0, 1) for q in (0, 1)]
    assert metrics.hallusion_tally(items) == {"aAcc": (3, 4), "fAcc": (1, 2), "qAcc": (1, 2)}


def test_a_question_without_its_figure_belongs_to_no_figure() -> None:
    items = [graded(question(f, 0, "VS"), f > 0) for f in (0, 1)]
    assert metrics.hallusion_tally(items) == {"aAcc": (1, 2), "fAcc": (1, 1), "qAcc": (0, 1)}
    assert metrics.hallusion_tally(items[:1])["fAcc"] == (0, 0)


def test_rounds_of_figures() -> None:
    items = [graded(question(0, 0), True, False), graded(question(0, 1), True, True)]
    assert metrics.hallusion_tally(items) == {"aAcc": (3, 4), "fAcc": (1, 2), "qAcc": (3, 4)}


def test_overall_is_the_mean_of_the_three() -> None:
    assert metrics.COMPOSITES["hallusionbench"]["overall"] == {"aAcc": 1, "fAcc": 1, "qAcc": 1}


def test_hallusionbench_as_the_authors_count(benchmarks_dir: Path) -> None:
    """346 figures and 455 question groups; the counts of utils.py over random verdicts."""
    rows = json.loads((benchmarks_dir / "hallusionbench" / "HallusionBench.json").read_text())
    rng = random.Random(1)
    for seen in (rows, [row for row in rows if row["visual_input"] != "0"]):
        items = [graded(row, rng.random() < 0.8) for row in seen]
        figures: dict[tuple[str, ...], list[bool]] = defaultdict(list)
        pairs: dict[tuple[str, ...], list[bool]] = defaultdict(list)
        for item in items:
            row, right = item.problem.row, item.verdicts[0].correct
            place = (row["category"], row["subcategory"], row["set_id"])
            if not (row["category"] == "VS" and row["figure_id"] == "0"):
                figures[(*place, row["figure_id"])].append(right)
            pairs[(*place, row["question_id"])].append(right)
        found = clustered(items, metrics.hallusion_cluster, metrics.hallusion_tally)
        assert found["aAcc"] == (sum(i.verdicts[0].correct for i in items), len(seen))
        assert found["fAcc"] == (sum(map(all, figures.values())), 346)
        assert found["qAcc"] == (sum(map(all, pairs.values())), 455)


# DynaMath


def test_average_worst_and_robustness() -> None:
    seeds = [[True] * 10, [True] * 6 + [False] * 4, [False] * 10]
    items = [
        graded({"id": s, "v": v}, right) for s, r in enumerate(seeds) for v, right in enumerate(r)
    ]
    found = clustered(items, metrics.dynamath_cluster, metrics.dynamath_tally)
    assert found["average_case"] == (1.6, 3) and found["worst_case"] == (1, 3)
    numerator, denominator = found["robustness"]
    assert numerator / denominator == pytest.approx((1 / 3) / (1.6 / 3))


def test_worst_cases_of_rounds() -> None:
    items = [graded({"id": 1, "v": 0}, True, True), graded({"id": 1, "v": 1}, True, False)]
    assert metrics.dynamath_tally(items)["worst_case"] == (1, 2)
    assert metrics.dynamath_tally(items)["average_case"] == (1.5, 2)


def test_a_single_variant_has_no_worst_case() -> None:
    assert set(metrics.dynamath_tally([graded({"id": 1}, True)])) == {"average_case"}


# MathVerse

VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")


def test_versions_and_their_averages() -> None:
    rights = dict(zip(VERSIONS, (True, True, True, False, False), strict=True))
    items = [graded({"problem_index": "1", "problem_version": v}, r) for v, r in rights.items()]
    tally = metrics.mathverse_tally(items)
    assert tally["text_dominant"] == (1, 1) and tally["vision_only"] == (0, 1)
    assert tally["five_versions"] == (3, 5) and tally["four_versions"] == (3, 4)
    assert metrics.mathverse_cluster(items[0].problem.row) == "1"


def test_an_average_needs_all_its_versions() -> None:
    items = [graded({"problem_index": "1", "problem_version": v}, True) for v in VERSIONS[:4]]
    assert "five_versions" not in metrics.mathverse_tally(items)
    assert metrics.mathverse_tally(items)["four_versions"] == (4, 4)
    text_only = [graded({"problem_index": "1", "problem_version": "Text Only"}, True)]
    assert metrics.mathverse_tally(text_only) == {"text_only": (1, 1)}


# The others


def test_mathvista_kinds() -> None:
    row = {
        "answer_type": "integer",
        "question_type": "free_form",
        "metadata": {"task": "figure question answering"},
    }
    assert metrics.mathvista_tally([graded(row, True, False)]) == {
        "answer_type/integer": (1, 2),
        "question_type/free_form": (1, 2),
        "task/figure_question_answering": (1, 2),
    }


def test_mathvision_levels_and_subjects() -> None:
    row = {"level": 3, "subject": "metric geometry - angle"}
    assert metrics.mathvision_tally([graded(row, True)]) == {
        "level/3": (1, 1),
        "subject/metric_geometry_angle": (1, 1),
    }


def test_logicvista_skills() -> None:
    assert metrics.logicvista_tally([graded({"skill": ["inductive"]}, True)]) == {
        "skill/inductive": (1, 1)
    }
    assert metrics.logicvista_tally([graded({"skill": "spatial"}, False)]) == {
        "skill/spatial": (0, 1)
    }


def test_mmmu_disciplines(benchmarks_dir: Path) -> None:
    """30 subjects of 30 questions in six disciplines (mmmu/README.md)."""
    names = json.loads((benchmarks_dir / "mmmu" / "answer_dict_val.json").read_text())
    found = total([metrics.mmmu_tally([graded({"id": name}, True)]) for name in names])
    kinds = Counter(name.split("/")[0] for name in found)
    assert kinds == {"discipline": 6, "subject": 30}
    assert {d for name, (_, d) in found.items() if name.startswith("subject/")} == {30}
    assert found["discipline/tech_and_engineering"] == (210, 210)
    assert found["discipline/humanities_and_social_science"] == (120, 120)


def test_a_row_without_a_field_is_an_error() -> None:
    without = {"dynamath", "mathvision", "logicvista"}  # their breakdowns are left out
    needing = {name: tally for name, tally in metrics.TALLIES.items() if name not in without}
    for tally in needing.values():
        with pytest.raises(ConfigError, match="a record has no field"):
            tally([graded({"x": 1}, True)])
    with pytest.raises(ConfigError, match="a record has no field 'id'"):
        metrics.dynamath_cluster({"x": 1})
