r"""Maths benchmarks: competitions, MATH, Minerva's course problems, OlympiadBench, GSM8K.

The instruction on the answer's form is MathArena's for competitions with integer answers, and
otherwise the one that Qwen2.5-Math's evaluation appends; graders look for `\boxed{}` first.
"""

from __future__ import annotations

from collections.abc import Callable

from evals.benchmarks.base import Benchmark, Row, Sampling, Source, pick, text_id, user
from reopold.data.published import BOXED

AIME_RULE = (
    r"Put your final answer within \boxed{}. "
    "The answer is an integer between 0 and 999 inclusive."
)
INTEGER_RULE = r"Put your final answer within \boxed{}. The answer is an integer."

_MAA = "problems copyright MAA; "

#: Subjects of MATH, each a configuration of the hub's data set.
_MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


def question(row: Row) -> str:
    return str(pick(row, "problem", "question", "Problem")).strip()


def asks(instruction: str) -> Callable[[Row], list[dict[str, str]]]:
    """A chat of the question with an instruction after it."""
    return lambda row: user(f"{question(row)}\n\n{instruction}")


def _by(*names: str) -> Callable[[Row], str]:
    """Names an item by one of these fields; by its text where it has none of them."""

    def identify(row: Row) -> str:
        name = next((row[name] for name in names if row.get(name) not in (None, "")), None)
        return text_id(question(row)) if name is None else str(name)

    return identify


def _integer(row: Row) -> str:
    """ "025", 25 and "25.0" are one answer."""
    answer = str(pick(row, "expected_answer", "answer", "Answer")).strip()
    try:
        return str(int(float(answer)))
    except (ValueError, OverflowError):
        return answer


def _answer(row: Row) -> str:
    return str(pick(row, "answer", "expected_answer", "final_answer")).strip()


def _answer_or_box(row: Row) -> str:
    """The answer field; some copies have only a solution with the answer in its box."""
    from reopold.answers.extract import boxed  # grading imports the benchmarks

    if row.get("answer") is None and isinstance(row.get("solution"), str):
        return boxed(row["solution"]) or str(pick(row, "answer"))
    return _answer(row)


def _final_answer(row: Row) -> str:
    answer = pick(row, "final_answer", "answer")
    return str(answer[0] if isinstance(answer, list) and answer else answer).strip().strip("$")


def _after_hashes(row: Row) -> str:
    return str(pick(row, "answer")).rpartition("####")[2].strip()


def _contest_page(row: Row) -> str:
    """Last parts of the problem's address: `2022_AMC_12A_Problems/Problem_1`."""
    url = row.get("url")
    return "/".join(str(url).split("/")[-2:]) if url else _by("id")(row)


AIME24 = Benchmark(
    name="aime24",
    family="maths",
    title="AIME 2024",
    source=Source(
        hub="Maxwell-Jia/AIME_2024",
        split="train",
        revision="8d88b2876a82a080e2f172cc9b25d0d9d2cb4792",
        files=("aime24/test.jsonl", "aime24.jsonl"),
    ),
    items=(30,),
    identify=_by("id", "ID"),
    messages=asks(AIME_RULE),
    gold=_integer,
    grader="integer",
    sampling=Sampling(max_new_tokens=32768, samples=32),
    licence=_MAA + "copies under Apache-2.0 and MIT",
    aliases=("aime2024",),
    note="30 questions: the standard error over questions is 6 to 9 points whatever k is",
)

AIME25 = Benchmark(
    name="aime25",
    family="maths",
    title="AIME 2025",
    source=Source(
        hub="math-ai/aime25",
        revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
        files=("aime25/test.jsonl", "aime25.jsonl"),
    ),
    items=(30,),
    identify=_by("id", "ID"),
    messages=asks(AIME_RULE),
    gold=_integer,
    grader="integer",
    sampling=Sampling(max_new_tokens=32768, samples=32),
    licence=_MAA + "copies under Apache-2.0 and MIT",
    aliases=("aime2025",),
    note="I and II; 30 questions: the standard error over questions is 6 to 9 points",
)

AMC23 = Benchmark(
    name="amc23",
    family="maths",
    title="AMC 2023 (40)",
    source=Source(
        hub="math-ai/amc23",
        revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
        files=("amc23/test.jsonl", "amc23.jsonl"),
    ),
    items=(40,),
    identify=_by("id"),
    messages=asks(INTEGER_RULE),
    gold=_integer,
    grader="integer",
    sampling=Sampling(max_new_tokens=32768, samples=32),
    licence=_MAA + "copy under MIT",
    aliases=("amc2023",),
    note="the 40 of AMC 12A and 12B 2023 with integer answers; papers also call 83 items AMC "
    "(amc12_83)",
)

AMC12_83 = Benchmark(
    name="amc12_83",
    family="maths",
    title="AMC 12 2022-2023 (83)",
    source=Source(
        hub="AI-MO/aimo-validation-amc",
        split="train",
        revision="69d78a4a2c840e82d69af6bc742bda09005f6316",
        files=("amc23/amc_2022_2023_83.json", "amc_2022_2023_83.json"),
    ),
    items=(83,),
    identify=_contest_page,
    messages=asks(INTEGER_RULE),
    gold=_integer,
    grader="integer",
    sampling=Sampling(max_new_tokens=32768, samples=32),
    licence=_MAA + "copies under MIT and Apache-2.0",
    aliases=("amc_2022_2023", "amc83", "aimo_validation_amc"),
    note="questions reworded so that answers are integers; papers also call 40 items AMC (amc23)",
)

MATH500 = Benchmark(
    name="math500",
    family="maths",
    title="MATH-500",
    source=Source(
        hub="HuggingFaceH4/MATH-500",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        files=("math500/test.jsonl", "MATH-500/test.jsonl", "math500.jsonl"),
    ),
    items=(500,),
    identify=_by("unique_id", "id"),
    messages=asks(BOXED),
    gold=_answer_or_box,
    grader="maths",
    sampling=Sampling(max_new_tokens=16384, samples=4),
    licence="MIT",
)

MATH = Benchmark(
    name="math",
    family="maths",
    title="MATH (5,000)",
    source=Source(
        hub="EleutherAI/hendrycks_math",
        config=_MATH_SUBJECTS,
        revision="21a5633873b6a120296cce3e2df9d5550074f4a3",
        files=("math/test.jsonl", "MATH/test.jsonl", "hendrycks_math/test.jsonl"),
        repeats=True,
    ),
    items=(5000,),
    identify=_by("unique_id", "id", "idx"),
    messages=asks(BOXED),
    gold=_answer_or_box,
    grader="maths",
    sampling=Sampling(temperature=0.0, top_p=1.0, max_new_tokens=16384),
    licence="MIT",
    aliases=("hendrycks_math", "math_5000"),
    note="the whole test split; PRM800K trains on the 4,500 items outside MATH-500",
)

MINERVA = Benchmark(
    name="minerva_ocw",
    family="maths",
    title="Minerva Math (OCW)",
    source=Source(
        hub="math-ai/minervamath",
        revision="ee46ddc498933b1977577953250ca5c66be64f96",
        files=("minerva_math/test.jsonl", "minerva_math.jsonl"),
        repeats=True,
    ),
    items=(272,),
    identify=_by("idx", "id"),
    messages=asks(BOXED),
    gold=_answer_or_box,
    grader="maths",
    sampling=Sampling(max_new_tokens=16384, samples=4),
    licence="MIT copy; text from MIT OpenCourseWare, CC BY-NC-SA 4.0: NON-COMMERCIAL, share-alike",
    aliases=("minerva", "minerva_math"),
    note="272 problems of nine MIT courses; what lm-eval calls minerva_math is Hendrycks MATH with "
    "Minerva's prompt",
)

OLYMPIADBENCH = Benchmark(
    name="olympiadbench",
    family="maths",
    title="OlympiadBench (maths, English, text)",
    source=Source(
        hub="Hothan/OlympiadBench",
        config="OE_TO_maths_en_COMP",
        split="train",
        revision="91184b52131e7fc9455fef848035173aea8cc01a",
        files=("olympiadbench/test.jsonl", "olympiadbench.jsonl"),
    ),
    items=(675, 674),
    identify=_by("id"),
    messages=asks(BOXED),
    gold=_final_answer,
    grader="olympiadbench",
    sampling=Sampling(max_new_tokens=16384, samples=4),
    licence="MIT (hub card: Apache-2.0)",
    aliases=("olympiad",),
    note="OE_TO_maths_en_COMP: 675 items in the file of Qwen2.5-Math's evaluation, 674 on the hub",
)

GSM8K = Benchmark(
    name="gsm8k",
    family="maths",
    title="GSM8K",
    source=Source(
        hub="openai/gsm8k",
        config="main",
        revision="740312add88f781978c0658806c59bc2815b9866",
        files=("gsm8k/test.jsonl", "gsm8k.jsonl"),
    ),
    items=(1319,),
    identify=_by("idx", "id"),
    messages=asks(BOXED),
    gold=_after_hashes,
    grader="gsm8k",
    sampling=Sampling(temperature=0.0, top_p=1.0, max_new_tokens=4096),
    licence="MIT",
)

MATHS: tuple[Benchmark, ...] = (
    AIME24,
    AIME25,
    AMC23,
    AMC12_83,
    MATH500,
    MATH,
    MINERVA,
    OLYMPIADBENCH,
    GSM8K,
)
