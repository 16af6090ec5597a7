"""Published numbers against the table and the list that they are taken from."""

from __future__ import annotations

import pytest

from evals.published import published, published_on

#: Printed averages over the five benchmarks: they tell a slip of the pen.
AVERAGES = {
    "student": 34.69,
    "teacher": 58.48,
    "OPD (K1)": 37.11,
    "Entropy OPD, top 20 %": 36.90,
    "REOPOLD, clip only": 38.79,
    "REOPOLD, two-phase": 36.89,
}
NINE = [72.4, 29.21, 38.6, 69.77, 57.3, 36.97, 30.83, 51.43, 19.43]


@pytest.mark.parametrize("method", AVERAGES)
def test_the_table_has_its_printed_average(method: str) -> None:
    values = [score.value for score in published() if score.method == method]
    assert len(values) == 5
    assert sum(values) / 5 == pytest.approx(AVERAGES[method], abs=0.011)


def test_the_nine_values_carry_their_origin() -> None:
    listed = [score for score in published() if score.method == "REOPOLD (score list)"]
    assert [score.value for score in listed] == NINE
    again = {score.benchmark for score in listed if "TrOPD" in score.origin}
    assert again == {"aime24", "aime25", "livecodebench"}
    assert all(score.caveat and score.source for score in published())


def test_scores_are_found_by_benchmark() -> None:
    assert {score.benchmark for score in published_on(["aime25"])} == {"aime25"}
    assert len(published_on(["aime25"])) == 7
