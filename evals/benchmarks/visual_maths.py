"""Maths on figures: MathVista, MATH-Vision, MathVerse, We-Math, DynaMath.

Prompts keep the authors' wording where their graders depend on it.
"""

from __future__ import annotations

import re

from evals.benchmarks.base import Benchmark, Row, Source, pick, user
from evals.benchmarks.visual_metrics import (
    dynamath_cluster,
    dynamath_tally,
    mathverse_cluster,
    mathverse_tally,
    mathvision_tally,
    mathvista_tally,
    wemath_cluster,
    wemath_tally,
)
from evals.benchmarks.visual_prompts import GREEDY, image, lettered, options, shown

# MathVista


def _vista_hint(row: Row) -> str:
    """The task instruction of each kind of answer (README of lupantech/MathVista)."""
    if pick(row, "question_type") == "multi_choice":
        return (
            "Hint: Please answer the question and provide the correct option letter, e.g., "
            "A, B, C, D, at the end."
        )
    kind, precision = pick(row, "answer_type"), row.get("precision")
    if kind == "integer":
        wanted, example = "an integer answer and provide the final value", "1, 2, 3"
    elif kind == "list":
        wanted = "a Python list as an answer and provide the final list"
        example = "[1, 2, 3], [1.2, 1.3, 1.4]"
    elif precision == 1:
        wanted = "a floating-point number with one decimal place and provide the final value"
        example = "1.2, 1.3, 1.4"
    else:
        wanted = "a floating-point number with two decimal places and provide the final value"
        example = "1.23, 1.34, 1.45"
    return f"Hint: Please answer the question requiring {wanted}, e.g., {example}, at the end."


def _vista(row: Row) -> list[dict[str, str]]:
    if query := row.get("query"):  # the hub's rows have it ready
        return shown(row, str(query))
    unit = f" (Unit: {row['unit']})" if row.get("unit") else ""
    question = f"Question: {pick(row, 'question')}{unit}"
    choices = f"Choices:\n{lettered(row['choices'])}" if row.get("choices") else ""
    parts = (_vista_hint(row), question, choices)
    return shown(row, "\n".join(part for part in parts if part).strip())


MATHVISTA = Benchmark(
    name="mathvista",
    family="visual",
    title="MathVista (testmini)",
    source=Source(
        hub="AI4Math/MathVista",
        split="testmini",
        revision="2b6ad69445fbb5695c9b165475e8decdbeb97747",
        files=("mathvista/testmini.json", "MathVista/data/testmini.json"),
    ),
    items=(1000,),
    identify=lambda row: str(pick(row, "pid", "id")),
    messages=_vista,
    gold=lambda row: str(pick(row, "answer")),
    grader="mathvista",
    tally=mathvista_tally,
    sampling=GREEDY,
    images=image,
    licence="CC BY-SA 4.0; images of 31 sources under their own; a test set: no training on it",
    note="testmini; rule `legacy` is that of the numbers published in 2023; numbers made with a "
    "judge model cannot be compared with ours",
)


# MATH-Vision


def _vision(row: Row) -> list[dict[str, str]]:
    """models/GPT4V.py (mathllm/MATH-V) for one merged image; options that are only the letters
    are in the figure and not listed."""
    choices = options(row) if row.get("options") else []
    listed = "" if "".join(choices) == "ABCDE" or not choices else f"{lettered(choices)}\n"
    rule = (
        r'Please solve the problem and put your answer in one "\boxed{}". '
        r'If it is a multiple choice question, only one letter is allowed in the "\boxed{}".'
    )
    return shown(row, f"{rule}\n{pick(row, 'question')}\n{listed}")


MATHVISION = Benchmark(
    name="mathvision",
    family="visual",
    title="MATH-Vision",
    source=Source(
        hub="MathLLMs/MathVision",
        files=("mathvision/test.jsonl", "MATH-V/data/test.jsonl", "MATH-V/test.jsonl"),
    ),
    items=(3040,),
    identify=lambda row: str(pick(row, "id")),
    messages=_vision,
    gold=lambda row: str(pick(row, "answer")),
    grader="mathvision",
    tally=mathvision_tally,
    sampling=GREEDY,
    images=image,
    licence="MIT",
    aliases=("math_v",),
    note="several figures of a question are one merged image; <image1> in its text names a part",
)

MATHVISION_MINI = Benchmark(
    name="mathvision_mini",
    family="visual",
    title="MATH-Vision (testmini)",
    source=Source(
        hub="MathLLMs/MathVision",
        split="testmini",
        files=("mathvision/testmini.jsonl", "MATH-V/data/testmini.jsonl", "MATH-V/testmini.jsonl"),
    ),
    items=(304,),
    identify=MATHVISION.identify,
    messages=_vision,
    gold=MATHVISION.gold,
    grader="mathvision",
    tally=mathvision_tally,
    sampling=GREEDY,
    images=image,
    licence="MIT",
    aliases=("mathvision_testmini",),
    note="304 of the 3,040",
)


# MathVerse

MATHVERSE = Benchmark(
    name="mathverse",
    family="visual",
    title="MathVerse (testmini)",
    source=Source(
        hub="AI4Math/MathVerse",
        config="testmini",
        split="testmini",
        files=(
            "mathverse/testmini.json",
            "MathVerse/testmini.json",
            "mathverse/testmini_text_only.json",
        ),
    ),
    items=(3940, 788),
    identify=lambda row: f"{pick(row, 'sample_index')}-{pick(row, 'problem_version')}",
    messages=lambda row: shown(row, str(pick(row, "query_cot", "query_wo"))),
    gold=lambda row: str(pick(row, "answer")),
    grader="mathverse",
    tally=mathverse_tally,
    sampling=GREEDY,
    images=image,
    cluster=mathverse_cluster,
    licence="MIT",
    note="788 problems in 5 versions; the 788 items of version Text Only are a further file, an "
    "ablation. Asked with query_cot (reason first); papers average 4 or 5 versions: say which",
)


# We-Math


def _wemath(row: Row) -> list[dict[str, str]]:
    """The authors' format (README of We-Math/We-Math): their rule reads what follows `Answer`."""
    text = (
        "Now, we require you to solve a multiple-choice math question. Please briefly describe "
        "your thought process and provide the final answer(option).\n"
        f"Question: {pick(row, 'question')}\n"
        f"Option: {pick(row, 'option')}\n"
        "Regarding the format, please answer following the template below, and be sure to include "
        "two <> symbols:\n"
        "<Thought process>: <<your thought process>> <Answer>: <<your option>>"
    )
    return user("<image>\n" * len(_wemath_image(row)) + text)


def _wemath_image(row: Row) -> list[str]:
    return [str(row["image_path"])] if row.get("image_path") else []


WEMATH = Benchmark(
    name="wemath",
    family="visual",
    title="We-Math (testmini)",
    source=Source(
        hub="We-Math/We-Math",
        split="testmini",
        files=(
            "wemath/testmini.json",
            "We-Math/data/testmini.json",
            "wemath_NC/testmini.json",
            "wemath_NC/sample.json",
        ),
    ),
    items=(1740, 54),
    identify=lambda row: f"{pick(row, 'ID')}@{pick(row, 'key')}",
    messages=_wemath,
    gold=lambda row: str(pick(row, "answer")),
    grader="wemath",
    tally=wemath_tally,
    sampling=GREEDY,
    images=_wemath_image,
    cluster=wemath_cluster,
    licence="CC BY-NC 4.0: NON-COMMERCIAL",
    note="525 groups of one-step problems and their composite; RL papers report plain accuracy, "
    "the authors the strict and loose scores. 54 items are 16 whole groups, a sample",
)


# DynaMath


def _variant(row: Row) -> str:
    """Number of a variant of a seed question, from its file (trial7) or split (sample_variant7)."""
    number = re.search(r"(?:trial|variant)_?([0-9]+)", str(row.get("source", "")))
    return number[1] if number else "1"


def _dynamath(row: Row) -> list[dict[str, str]]:
    """The request of evaluation/opensource_json_eval.py (DynaMath/DynaMath), in our words."""
    numeric = (row.get("answer_type") or row.get("question_type")) == "float"
    number = " Please answer in a floating-point number." if numeric else ""
    text = (
        f"## Question\n{pick(row, 'question')}{number}\n\n"
        '## Answer format\nAnswer with a JSON object of two keys: "solution", the steps needed, '
        'and "short answer", the answer alone. For a multiple choice problem the short answer is '
        "the letter of the option, such as A, B, C or D; a numerical value is a floating-point "
        "number with three digits after the point.\n\n"
        'Example: {"solution": "[step-by-step explanation]", "short answer": "[answer]"}'
    )
    return shown(row, text)


DYNAMATH = Benchmark(
    name="dynamath",
    family="visual",
    title="DynaMath",
    source=Source(
        hub="DynaMath/DynaMath_Sample",
        split=tuple(f"sample_variant{number}" for number in range(1, 11)),
        files=(
            "dynamath/10trials/trial*/dataset.json",
            "dynamath/trial*/dataset.json",
            "dynamath/dataset.json",
            "DynaMath/dataset/dataset.json",
        ),
    ),
    items=(5010, 501),
    identify=lambda row: f"{pick(row, 'id')}-{_variant(row)}",
    messages=_dynamath,
    gold=lambda row: str(pick(row, "answer", "ground_truth")),
    grader="dynamath",
    tally=dynamath_tally,
    sampling=GREEDY,
    images=image,
    cluster=dynamath_cluster,
    licence="MIT badge, no licence file",
    note="10 variants of 501 seed questions; 501 items are one variant, without worst case",
)
