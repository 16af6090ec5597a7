"""Numbers as text, and the reading of a study in sentences made from its numbers."""

from __future__ import annotations

from collections.abc import Mapping

from evals.report.analysis import Analysis, EfficiencyRow, MethodRow
from evals.report.statistics import Efficiency, Limit, verdict
from evals.stats import RESAMPLES, Interval
from reopold.study_config import is_reference

WHAT_THIS_IS = (
    "These are micro models, trained from scratch on procedurally generated problems in minutes. "
    "The study shows how the methods behave under equal conditions at this scale. It is not a "
    "reproduction of the paper's models, data or scores, and its efficiency factors are not the "
    "paper's."
)

UNIT_NAMES = {
    "samples": "samples",
    "steps": "steps",
    "tokens": "generated tokens",
    "rollouts": "rollouts drawn",
    "teacher_tokens": "tokens the teacher scored",
    "prefill_tokens": "tokens read (prefill)",
    "flops": "FLOPs",
    "device_seconds": "GPU-seconds (CPU: of a core)",
    "seconds": "wall-clock",
}


def percent(fraction: float) -> str:
    """0.718 as `71.8`."""
    return f"{100 * fraction:.1f}"


def points(difference: float) -> str:
    """A difference of scores in percentage points, signed: `+14.5`, `−0.3`, `0.0`."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def factor(limit: Limit) -> str:
    """`3.0×`, or a bound: `< 1.0×`, `≥ 6.0×`."""
    if limit.bound == "?":
        return "unresolved"
    digits = f"{limit.ratio:.2f}" if limit.ratio < 0.95 else f"{limit.ratio:.1f}"
    sign = {"": "", "<": "< ", "<=": "≤ ", ">=": "≥ "}[limit.bound]
    return f"{sign}{digits}×"


def factor_interval(efficiency: Efficiency) -> str:
    low, high = factor(efficiency.low), factor(efficiency.high)
    return low if low == high else f"{low} to {high}"


def amount(cost: float, unit: str) -> str:
    """A cost in words: `9,600 samples`, `1.9 M tokens`, `3 min 20 s`."""
    if unit == "seconds":
        return duration(cost)
    if unit == "flops":
        return f"{cost:.3g} FLOPs"
    return f"{cost:,.0f} {unit}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def reached(efficiency: Efficiency, unit: str) -> str:
    """The efficiency with what a bound means: `< 1.0×, not reached in 19,200 samples`."""
    text = factor(efficiency.value)
    cost = amount(efficiency.cost, unit)
    if efficiency.value.bound == "<":
        return f"{text}, not reached in {cost}"
    if efficiency.value.bound == ">=":
        return f"{text}, reached by the first checkpoint ({cost})"
    return text


def interval_words(interval: Interval, signed: bool = False) -> str:
    show = points if signed else percent
    return f"{show(interval.low)} to {show(interval.high)}"


def listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


#: Arms beyond which a reading groups them instead of giving each a sentence.
FEW = 4


def reading(analysis: Analysis) -> list[str]:
    """What the numbers of one benchmark allow to be said, best-supported or not."""
    if not analysis.methods:
        return [f"Nothing has been evaluated on {analysis.benchmark} yet: there is nothing to say."]
    compared = [row for row in analysis.methods if not is_reference(row.method)]
    sentences = [_room(analysis)] if analysis.row("student") and analysis.row("teacher") else []
    if len(compared) > FEW:
        sentences += _grouped_reading(analysis, compared)
    else:
        sentences += [_against_student(row) for row in compared if row.gain is not None]
        sentences += _pairs(compared)
        sentences += efficiency_words(analysis)
    # "38.8 %" must not break before the sign.
    return [text.replace(" %", "\u00a0%") for text in [*sentences, _how_sure(analysis)]]


def _pairs(compared: list[MethodRow]) -> list[str]:
    done: set[frozenset[str]] = set()
    sentences = []
    for row in compared:
        for other, difference in row.versus.items():
            if frozenset((row.method, other)) not in done:  # opd - grpo says what grpo - opd would
                done.add(frozenset((row.method, other)))
                sentences.append(_against(row.method, other, difference))
    return sentences


def _grouped_reading(analysis: Analysis, compared: list[MethodRow]) -> list[str]:
    """Of many arms: who is above, below or undecided, against each of those held against."""
    gains = {row.method: row.gain for row in compared if row.gain is not None}
    sentences = [_verdicts("the student", gains)] if gains else []
    others = dict.fromkeys(other for row in compared for other in row.versus)
    for other in others:
        against = {row.method: row.versus[other] for row in compared if other in row.versus}
        sentences.append(_verdicts(other, against))
    found = {
        row.method: factor(row.units["samples"].value)
        for row in analysis.efficiency
        if "samples" in row.units
    }
    if found:
        told = ", ".join(f"{method} {value}" for method, value in found.items())
        sentences.append(
            f"Samples to {analysis.baseline}'s final score, as {analysis.baseline}'s divided by "
            f"the method's (< : not reached): {told}."
        )
    return sentences


def _verdicts(other: str, differences: Mapping[str, Interval]) -> str:
    """`Against grpo: above are opd (+3.1), ...; below is ...; undecided are ...`"""
    parts = []
    for how in ("above", "below", "undecided"):
        named = [
            f"{method} ({points(each.value)})"
            for method, each in sorted(differences.items(), key=lambda item: -item[1].value)
            if verdict(each) == how
        ]
        if named:
            parts.append(f"{how} {'is' if len(named) == 1 else 'are'} {listed(named)}")
    return f"Against {other}, in points: {'; '.join(parts)}."


def _room(analysis: Analysis) -> str:
    student, teacher = analysis.row("student"), analysis.row("teacher")
    assert student and teacher and teacher.gain
    room = (
        f"The student starts at {percent(student.score.value)} %, the teacher stands at "
        f"{percent(teacher.score.value)} %"
    )
    size = f"95 % {interval_words(teacher.gain, signed=True)}"
    if verdict(teacher.gain) == "above":
        gap = points(teacher.gain.value)[1:]
        return f"{room}: there are {gap} points to be learnt from it ({size})."
    return f"{room}: it is not established that the teacher is better at all ({size})."


def _against_student(row: MethodRow) -> str:
    assert row.gain is not None
    text = f"{row.method} ends at {percent(row.score.value)} %"
    size = f"{points(row.gain.value)} points, 95 % {interval_words(row.gain, signed=True)}"
    how = verdict(row.gain)
    if how == "undecided":
        return f"{text}: whether it moved away from the student is undecided ({size})."
    recovered = ""
    if row.gap is not None and how == "above":
        recovered = f", {100 * row.gap.value:.0f} % of the gap to the teacher"
    return f"{text}, {how} the student ({size}){recovered}."


def _against(method: str, other: str, difference: Interval) -> str:
    size = f"{points(difference.value)} points, 95 % {interval_words(difference, signed=True)}"
    how = verdict(difference)
    if how == "undecided":
        return f"{method} against {other}: undecided ({size}, which includes 0)."
    return f"{method} is {how} {other} ({size}, which excludes 0)."


def efficiency_words(analysis: Analysis) -> list[str]:
    """A sentence on the target if it is a poor one, then one a method."""
    baseline = analysis.row(analysis.baseline)
    if baseline is None or analysis.target is None:
        return [
            f"Sample efficiency cannot be told: the baseline {analysis.baseline} has no score yet."
        ]
    sentences = []
    if baseline.gain is not None and verdict(baseline.gain) != "above":
        sentences.append(
            f"The baseline {analysis.baseline} did not measurably improve over the student "
            f"({points(baseline.gain.value)} points, 95 % "
            f"{interval_words(baseline.gain, signed=True)}): its final score is a target that the "
            "student all but meets from the start, and the efficiencies below say little."
        )
    return sentences + [
        _efficiency_of(row, analysis) for row in analysis.efficiency if "samples" in row.units
    ]


def _efficiency_of(row: EfficiencyRow, analysis: Analysis) -> str:
    found = row.units["samples"]
    target = f"{analysis.baseline}'s final score"
    text = f"{row.method} to {target}: {reached(found, 'samples')}"
    if found.value.bound == "<":
        return f"{text} (reached in {100 * found.reached:.0f} % of the resamples)."
    return (
        f"{text} ({amount(found.cost, 'samples')} against "
        f"{amount(found.baseline_cost, 'samples')}; 95 % {factor_interval(found)})."
    )


def _how_sure(analysis: Analysis) -> str:
    seeds = sorted({len(row.seeds) for row in analysis.methods if not is_reference(row.method)})
    counts = listed([str(count) for count in seeds]) if seeds else "0"
    text = (
        f"All of this rests on {analysis.n} questions{_grouped(analysis)}, {analysis.k} samples "
        f"each, and {counts} "
        f"seed{'' if seeds == [1] else 's'} a method."
    )
    if seeds and seeds[0] == 1:
        text += " With a single seed the interval knows nothing of the spread between seeds."
    comparisons = sum(len(row.versus) + 1 for row in analysis.methods if row.gain is not None)
    return f"{text} The intervals are not corrected for the {comparisons} comparisons shown."


def _grouped(analysis: Analysis) -> str:
    return f" in {analysis.clusters} clusters" if analysis.clusters < analysis.n else ""


def score_caption(analysis: Analysis) -> str:
    together = " Questions of one cluster are drawn together." if _grouped(analysis) else ""
    return (
        f"Final scores on {analysis.benchmark}: {analysis.n} questions{_grouped(analysis)}, "
        f"{analysis.k} samples each, the last evaluated checkpoint of each run; mean over seeds. "
        "Below each number its 95 % interval: questions resampled "
        f"({RESAMPLES:,} times), seeds varied as Student's t has it, differences paired over "
        "questions. Student and teacher "
        "are single runs: only "
        f"questions are resampled.{together} Scores in %, differences in percentage points."
    )


def efficiency_caption(analysis: Analysis) -> str:
    target = "" if analysis.target is None else f" ({percent(analysis.target)} %)"
    return (
        f"Cost until {analysis.baseline}'s final score{target}, cost({analysis.baseline}) / "
        "cost(method): the first checkpoint at which the smoothed score (the mean over seeds; with "
        "16 checkpoints or more also over the last 2 or 3 of them) reaches the target. 95 % "
        "intervals resample questions and seeds, target included. Costs are counted "
        "at checkpoints, so < and ≥ mark what lies outside them."
    )
