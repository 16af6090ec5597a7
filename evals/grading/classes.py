"""Which extracted answers are the same, for majority votes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evals.benchmarks import find
from reopold.answers.workers import call_in_workers

#: Graders whose answers are compared as mathematics; of all others, as text.
_MATHS = frozenset({"integer", "maths", "gsm8k", "olympiadbench"})


def answer_classes(benchmark: str, answers: Sequence[str | None]) -> list[int | None]:
    """The class of each extracted answer, numbered in order of first appearance; None is in none.

    An answer joins the first class whose representative, its earliest member, it equals: equality
    of mathematics is not transitive (0.3333 and 0.33333 both equal 1/3, not each other). Maths
    answers are equal if either, taken as gold, would have the other graded right by the sound
    rule, so that the sound verdicts within a class agree wherever the gold is exact; pairs that
    cannot be compared within a worker's limits are different. Answers of other benchmarks are
    equal as text, but for case, spaces and a final point.

    Raises:
        ConfigError: no such benchmark.
    """
    if find(benchmark).grader in _MATHS:
        return _classes(answers, str.strip, _equal_maths)
    return _classes(answers, _plain, lambda answer, others: [False] * len(others))


def _plain(answer: str) -> str:
    return " ".join(answer.split()).rstrip(".").casefold()


def _classes(
    answers: Sequence[str | None],
    normal: Callable[[str], str],
    equal: Callable[[str, list[str]], list[bool]],
) -> list[int | None]:
    """Classes of texts that are the same once normal, then of those that `equal` says are."""
    texts = [None if answer is None else normal(answer) for answer in answers]
    unplaced = list(dict.fromkeys(text for text in texts if text is not None))
    number: dict[str, int] = {}
    for place in range(len(unplaced)):
        if not unplaced:
            break
        representative, *others = unplaced
        same = equal(representative, others)
        number[representative] = place
        number |= {text: place for text, is_same in zip(others, same, strict=True) if is_same}
        unplaced = [text for text in others if text not in number]
    return [None if text is None else number[text] for text in texts]


def _equal_maths(answer: str, others: list[str]) -> list[bool]:
    if not others:
        return []
    function = "reopold.answers.equality:either_way"
    results = call_in_workers(function, [(answer, other) for other in others])
    return [result.status == "ok" and bool(result.value) for result in results]
