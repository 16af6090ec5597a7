"""Metrics of the visual benchmarks, from the graded problems of one cluster.

Each function is a :attr:`Benchmark.tally`: metric -> (numerator, denominator), to be summed over
clusters. With several samples a problem, sample j of every problem of a cluster makes one round,
as if the benchmark had been run j times; rounds are summed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from evals.benchmarks.base import Graded, Row, Tally, pick
from reopold.config import ConfigError

#: Weighted means of tallied metrics, by benchmark and name, for :attr:`Benchmark.composites`.
COMPOSITES: dict[str, dict[str, dict[str, float]]] = {
    "hallusionbench": {"overall": {"aAcc": 1.0, "fAcc": 1.0, "qAcc": 1.0}},
}

#: Versions of a MathVerse problem. The authors' overall score is over all five, `Text Only` being
#: an ablation; papers that average four leave out the one whose question is in the figure.
_FIVE_VERSIONS = (
    "Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only"
)  # fmt: skip
_AVERAGES = {"five_versions": _FIVE_VERSIONS, "four_versions": _FIVE_VERSIONS[:4]}

_DISCIPLINES: dict[str, str] = {
    "art_and_design": "art art_theory design music",
    "business": "accounting economics finance manage marketing",
    "science": "biology chemistry geography math physics",
    "health_and_medicine": "basic_medical_science clinical_medicine "
    "diagnostics_and_laboratory_medicine pharmacy public_health",
    "humanities_and_social_science": "history literature sociology psychology",
    "tech_and_engineering": "agriculture architecture_and_engineering computer_science "
    "electronics energy_and_power materials mechanical_engineering",
}
_DISCIPLINE = {
    subject: name for name, subjects in _DISCIPLINES.items() for subject in subjects.split()
}


def slug(text: object) -> str:
    """Part of a metric's name."""
    return re.sub(r"[^a-z0-9]+", "_", str(text).lower()).strip("_")


def _rights(one: Graded) -> tuple[int, int]:
    return sum(verdict.correct for verdict in one.verdicts), len(one.verdicts)


def _by(graded: Sequence[Graded], names: Callable[[Row], Iterable[str]]) -> Tally:
    """Accuracy of the problems under each of their names."""
    tally: Tally = {}
    for one in graded:
        right, total = _rights(one)
        for name in names(one.problem.row):
            r, t = tally.get(name, (0, 0))
            tally[name] = (r + right, t + total)
    return tally


def _rounds(graded: Sequence[Graded]) -> list[list[bool]]:
    """Of each round, whether each problem is right, in the order of `graded`.

    Raises:
        ConfigError: the problems have different numbers of samples.
    """
    counts = {len(one.verdicts) for one in graded}
    if len(counts) > 1:
        ids = ", ".join(one.problem.id for one in graded)
        raise ConfigError(
            f"problems of one group have {sorted(counts)} samples ({ids}); its metrics need as "
            "many of each: sample the missing ones"
        )
    return [
        [one.verdicts[number].correct for one in graded] for number in range(max(counts, default=0))
    ]


def _groups(graded: Sequence[Graded], key: Callable[[Row], str]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for place, one in enumerate(graded):
        groups.setdefault(key(one.problem.row), []).append(place)
    return list(groups.values())


def mathvista_tally(graded: Sequence[Graded]) -> Tally:
    """Accuracy by kind of answer, kind of question and task (calculate_score.py)."""

    def names(row: Row) -> list[str]:
        metadata = row.get("metadata") or {}
        found = [(name, pick(row, name)) for name in ("answer_type", "question_type")]
        found += [("task", metadata["task"])] if metadata.get("task") else []
        return [f"{name}/{slug(value)}" for name, value in found]

    return _by(graded, names)


def mathvision_tally(graded: Sequence[Graded]) -> Tally:
    """Accuracy by level and by subject (evaluate.py)."""
    return _by(
        graded,
        lambda row: [
            f"{name}/{slug(row[name])}"
            for name in ("level", "subject")
            if row.get(name) is not None
        ],
    )


def mathverse_cluster(row: Row) -> str:
    """The problem that the versions show."""
    return str(pick(row, "problem_index"))


def mathverse_tally(graded: Sequence[Graded]) -> Tally:
    """Accuracy by version, and over the five and the four of a problem that has them all."""
    tally = _by(graded, lambda row: (slug(pick(row, "problem_version")),))
    for name, versions in _AVERAGES.items():
        parts = [tally.get(slug(version)) for version in versions]
        if None not in parts:
            found = [part for part in parts if part is not None]
            tally[name] = (sum(right for right, _ in found), sum(total for _, total in found))
    return tally


def wemath_cluster(row: Row) -> str:
    """The composite problem with its one-step problems."""
    return str(pick(row, "ID"))


def wemath_tally(graded: Sequence[Graded]) -> Tally:
    """The four dimensions and the scores of one group (four_dimensional_metrics.py), and the
    accuracies s1, s2, s3 of one-step, two-step and three-step problems (accuracy.py).

    Let S be that all one-step problems are right, A that any is, M the composite. Insufficient
    knowledge is not S and not M; inadequate generalisation S and not M; complete mastery S and M
    (strict) or A and M (loose); rote memorisation is M without it. The score is mastery plus half
    of inadequate generalisation, over all groups; rote memorisation is a share of those with M.

    Raises:
        ConfigError: the group is incomplete or has a problem twice.
    """
    steps, composite = _wemath_places(graded)
    rounds = _rounds(graded)
    total = len(rounds)
    ik = ig = strict = loose = solved = ones = 0
    for right in rounds:
        parts = [right[place] for place in steps]
        m, s, a = right[composite], all(parts), any(parts)
        ik += not s and not m
        ig += s and not m
        strict += s and m
        loose += a and m
        solved += m
        ones += sum(parts)
    return {
        "score_strict": (strict + 0.5 * ig, total),
        "score_loose": (loose + 0.5 * ig, total),
        "ik": (ik, total),
        "ig": (ig, total),
        "cm_strict": (strict, total),
        "cm_loose": (loose, total),
        "rm_strict_rate": (solved - strict, solved),
        "rm_loose_rate": (solved - loose, solved),
        "s1": (ones, total * len(steps)),
        f"s{len(steps)}": (solved, total),
    }


def _wemath_places(graded: Sequence[Graded]) -> tuple[list[int], int]:
    """Where in the group its one-step problems are, and its composite."""
    keys = [str(pick(one.problem.row, "key")) for one in graded]
    group = str(pick(graded[0].problem.row, "ID"))
    number = re.match(r"([23])steps_", keys[0])
    steps = int(number[1]) if number else 0
    wanted = [f"{steps}steps_{part}" for part in (*range(1, steps + 1), "multi")]
    if sorted(keys) != sorted(wanted):
        raise ConfigError(
            f"group {group} of We-Math should have the problems {', '.join(wanted)} and has "
            f"{', '.join(sorted(keys))}; its metrics need whole groups: evaluate all of them"
        )
    *places, composite = (keys.index(key) for key in wanted)
    return places, composite


def hallusion_cluster(row: Row) -> str:
    """A set: figures and questions that are variants of one another."""
    return "/".join(str(pick(row, name)) for name in ("category", "subcategory", "set_id"))


def hallusion_tally(graded: Sequence[Graded]) -> Tally:
    """Accuracy of questions (aAcc), of figures with all their questions (fAcc) and of questions
    over all figures of their set (qAcc) (utils.py).

    A VS question without its figure (figure 0) belongs to no figure.
    """
    rounds = _rounds(graded)
    rows = [one.problem.row for one in graded]
    seen = [
        place
        for place, row in enumerate(rows)
        if not (pick(row, "category") == "VS" and str(pick(row, "figure_id")) == "0")
    ]
    figures = [
        [seen[place] for place in group]
        for group in _groups([graded[p] for p in seen], lambda row: str(pick(row, "figure_id")))
    ]
    questions = _groups(graded, lambda row: str(pick(row, "question_id")))

    def all_right(groups: list[list[int]]) -> tuple[int, int]:
        right = sum(all(done[place] for place in group) for done in rounds for group in groups)
        return right, len(groups) * len(rounds)

    singles = [[place] for place in range(len(rows))]
    return {
        "aAcc": all_right(singles),
        "fAcc": all_right(figures),
        "qAcc": all_right(questions),
    }


def dynamath_cluster(row: Row) -> str:
    """The seed question."""
    return str(pick(row, "id"))


def dynamath_tally(graded: Sequence[Graded]) -> Tally:
    """Average-case accuracy over variants, worst-case accuracy (all variants right) and their
    quotient, the robustness of reasoning; a single variant has no worst case."""
    rounds = _rounds(graded)
    average = sum(sum(right) / len(right) for right in rounds)
    tally: Tally = {"average_case": (average, len(rounds))}
    if len(graded) > 1:
        worst = sum(all(right) for right in rounds)
        tally |= {"worst_case": (worst, len(rounds)), "robustness": (worst, average)}
    return tally


def logicvista_tally(graded: Sequence[Graded]) -> Tally:
    """Accuracy by reasoning skill (analyze_accuracy.py)."""

    def names(row: Row) -> list[str]:
        skills = row.get("skill") or []
        return [f"skill/{slug(s)}" for s in ([skills] if isinstance(skills, str) else skills)]

    return _by(graded, names)


def mmmu_tally(graded: Sequence[Graded]) -> Tally:
    """Accuracy by subject and by discipline (print_results.py)."""

    def names(row: Row) -> list[str]:
        subject = slug("_".join(str(pick(row, "id")).split("_")[1:-1]))
        discipline = _DISCIPLINE.get(subject)
        found = [f"discipline/{discipline}"] if discipline else []
        return [*found, f"subject/{subject}"]

    return _by(graded, names)


#: By the name of the benchmark.
TALLIES: Mapping[str, Callable[[Sequence[Graded]], Tally]] = {
    "mathvista": mathvista_tally,
    "mathvision": mathvision_tally,
    "mathverse": mathverse_tally,
    "wemath": wemath_tally,
    "hallusionbench": hallusion_tally,
    "dynamath": dynamath_tally,
    "logicvista": logicvista_tally,
    "mmmu": mmmu_tally,
}
