"""Published numbers against the tables and the list that they are taken from."""

from __future__ import annotations

from collections import Counter

import pytest

from evals.benchmarks import find
from evals.published import one_a_method, published, published_on

#: Printed averages of whole tables: they tell a slip of the pen. Origin, method, values, average.
AVERAGES = [
    ("TrOPD", "student", 5, 34.69),
    ("TrOPD", "teacher", 5, 58.48),
    ("TrOPD", "OPD (K1)", 5, 37.11),
    ("TrOPD", "Entropy OPD, top 20 %", 5, 36.90),
    ("TrOPD", "REOPOLD, clip only", 5, 38.79),
    ("TrOPD", "REOPOLD, two-phase", 5, 36.89),
    ("its authors", "DeepScaleR-1.5B-Preview", 5, 56.94),  # 57.0 in print
    ("DeepScaleR", "STILL-3-1.5B-preview", 5, 51.6),
]
#: Of rows whose printed average is over benchmarks that are not all listed here: sums by hand.
SUMS = [
    ("its authors", "ProRL", 60.14 * 6 - 91.89),
    ("authors of ProRL", "DeepScaleR-1.5B-Preview", 54.54 * 6 - 89.36),
    ("authors of JustRL", "ProRL-V2", 53.08 * 9 - (19.38 + 47.29 + 25.86)),
]
NINE = {
    "mathvista": 72.4,
    "mathvision": 29.21,
    "minerva_ocw": 38.6,
    "wemath": 69.77,
    "olympiadbench": 57.3,
    "aime24": 36.97,
    "aime25": 30.83,
    "mathverse": 51.43,
    "livecodebench": 19.43,
}


def values(origin: str, method: str) -> list[float]:
    return [s.value for s in published() if s.method == method and origin in s.origin]


@pytest.mark.parametrize(("origin", "method", "count", "average"), AVERAGES)
def test_a_table_has_its_printed_average(
    origin: str, method: str, count: int, average: float
) -> None:
    found = values(origin, method)
    assert len(found) == count
    assert sum(found) / count == pytest.approx(average, abs=0.011)


@pytest.mark.parametrize(("origin", "method", "total"), SUMS)
def test_a_part_of_a_table_has_what_the_rest_leaves(origin: str, method: str, total: float) -> None:
    assert sum(values(origin, method)) == pytest.approx(total, abs=0.05)


def test_the_nine_values_carry_their_origin() -> None:
    listed = [score for score in published() if score.method == "REOPOLD (score list)"]
    assert {score.benchmark: score.value for score in listed} == NINE
    again = {score.benchmark for score in listed if "TrOPD" in score.origin}
    assert again == {"aime24", "aime25", "livecodebench"}
    teachers = {score.benchmark: score.teacher for score in listed}
    assert (teachers["aime24"], teachers["livecodebench"]) == (
        "Skywork-OR1-Math-7B",
        "Skywork-OR1-7B",
    )


def test_every_number_says_where_it_is_from() -> None:
    assert all(s.caveat and s.source and s.origin and s.model for s in published())
    assert all(0 < score.value < 100 for score in published())
    ours = {score.benchmark for score in published()} - {"gpqa_diamond"}
    assert all(find(name).name == name for name in ours)


def test_no_number_is_there_twice_under_one_name() -> None:
    names = Counter((s.benchmark, s.method, s.model, s.teacher, s.origin) for s in published())
    assert names.most_common(1)[0][1] == 1


def test_samples_are_said_only_where_they_are_stated() -> None:
    unsaid = {(score.method, score.benchmark) for score in published() if not score.k}
    assert ("OPD (K1)", "livecodebench") in unsaid and ("BroRL", "aime24") in unsaid
    stated = {(s.method, s.origin): s.k for s in published_on(["aime24"]) if s.k}
    assert stated["STILL-3-1.5B-preview", "its authors"] == 64
    assert stated["DAPO", "its authors"] == 32


def test_scores_are_found_by_benchmark() -> None:
    assert {score.benchmark for score in published_on(["aime25"])} == {"aime25"}
    students = {score.value for score in published_on(["aime25"]) if score.method == "student"}
    assert students == {24.16}


def test_a_figure_has_one_number_a_method_the_authors_own_first() -> None:
    shown = {score.method: score.value for score in one_a_method(published_on(["aime24"]))}
    assert len(shown) == len({score.method for score in published_on(["aime24"])})
    assert (shown["STILL-3-1.5B-preview"], shown["DeepScaleR-1.5B-Preview"]) == (39.33, 43.1)
    assert shown["ProRL-V2"] == 51.87  # only others have printed one
