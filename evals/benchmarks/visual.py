"""Visual benchmarks: those of visual maths, and HallusionBench, LogicVista and MMMU."""

from __future__ import annotations

import re

from evals.benchmarks.base import Benchmark, Row, Source, pick, user
from evals.benchmarks.visual_maths import (
    DYNAMATH,
    MATHVERSE,
    MATHVISION,
    MATHVISION_MINI,
    MATHVISTA,
    WEMATH,
)
from evals.benchmarks.visual_metrics import (
    COMPOSITES,
    hallusion_cluster,
    hallusion_tally,
    logicvista_tally,
    mmmu_tally,
)
from evals.benchmarks.visual_prompts import GREEDY, lettered, options

# HallusionBench


def _hallusion_image(row: Row) -> list[str]:
    path = row.get("image") or row.get("filename")
    return [str(path).removeprefix("./")] if path else []


def _hallusion(row: Row) -> list[dict[str, str]]:
    text = f"{pick(row, 'question')}\nPlease answer yes or no."
    return user("<image>\n" * len(_hallusion_image(row)) + text)


_HALLUSION_IDS = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id")

HALLUSIONBENCH = Benchmark(
    name="hallusionbench",
    family="visual",
    title="HallusionBench",
    source=Source(
        hub="lmms-lab/HallusionBench",
        split="image",
        files=("hallusionbench/HallusionBench.json", "HallusionBench/HallusionBench.json"),
    ),
    items=(1129, 951),
    identify=lambda row: "/".join(str(pick(row, name)) for name in _HALLUSION_IDS),
    messages=_hallusion,
    gold=lambda row: {"1": "yes", "0": "no"}.get(
        str(pick(row, "gt_answer")), str(row["gt_answer"])
    ),
    grader="hallusionbench",
    sampling=GREEDY,
    images=_hallusion_image,
    cluster=hallusion_cluster,
    metric="overall",
    tally=hallusion_tally,
    composites=COMPOSITES["hallusionbench"],
    licence="BSD-3-Clause",
    aliases=("hallusion",),
    note="951 items are the image split (visual_input 1 and 2), which the hub and most papers use; "
    "the other 178 ask without a figure",
)


# LogicVista


def _logicvista_image(row: Row) -> list[str]:
    if path := row.get("image"):
        return [str(path)]
    return [f"images/{row['imagename']}"] if row.get("imagename") else []


def _logicvista(row: Row) -> list[dict[str, str]]:
    text = (
        f"{row.get('question') or 'Solve the problem in the image.'}\n"
        r"Put the letter of the right option within \boxed{}; several letters with commas between "
        "them where several options are right."
    )
    return user("<image>\n" * len(_logicvista_image(row)) + text)


LOGICVISTA = Benchmark(
    name="logicvista",
    family="visual",
    title="LogicVista",
    source=Source(
        hub="lscpku/LogicVista",
        files=(
            "logicvista/dataset.json",
            "LogicVista/data/dataset.json",
            "logicvista_licensed_subset/dataset.json",
        ),
    ),
    items=(448, 161),
    identify=lambda row: str(pick(row, "id", "imagename")).removesuffix(".png"),
    messages=_logicvista,
    gold=lambda row: str(pick(row, "answer")),
    grader="logicvista",
    tally=logicvista_tally,
    sampling=GREEDY,
    images=_logicvista_image,
    licence="Apache-2.0, but 287 of 448 images are not licensed by their owners",
    note="161 items are those whose image is licensed; item v1_382 was published without question "
    "and answer, so nothing is right there",
)


# MMMU

_MARK = re.compile(r"<image (\d)>")


def _mmmu_text(row: Row) -> str:
    """mmmu/configs/llava1.5.yaml (MMMU-Benchmark/MMMU): its two formats."""
    question = str(pick(row, "question"))
    if pick(row, "question_type") == "multiple-choice":
        return (
            f"{question}\n\n{lettered(options(row))}\n\n"
            "Answer with the option's letter from the given choices directly."
        )
    return f"{question}\n\nAnswer the question using a single word or phrase."


def _mmmu(row: Row) -> list[dict[str, str]]:
    if "question" not in row:
        return []  # answer_dict_val.json: gold answers only
    text = _MARK.sub("<image>", _mmmu_text(row))
    unmarked = 0 if "<image>" in text else len(_mmmu_images(row))
    return user("<image>\n" * unmarked + text)


def _mmmu_images(row: Row) -> list[str]:
    """In the order of the marks in question and options; all of them where nothing is marked."""
    if "question" not in row:
        return []
    numbers = _MARK.findall(_mmmu_text(row)) or [
        str(number) for number in range(1, 8) if row.get(f"image_{number}")
    ]
    return [str(pick(row, f"image_{number}")) for number in numbers]


def _mmmu_gold(row: Row) -> str:
    gold = pick(row, "answer", "ground_truth")
    return " or ".join(map(str, gold)) if isinstance(gold, list) else str(gold)


_MMMU_SUBJECTS = (
    "Accounting Agriculture Architecture_and_Engineering Art Art_Theory Basic_Medical_Science "
    "Biology Chemistry Clinical_Medicine Computer_Science Design "
    "Diagnostics_and_Laboratory_Medicine Economics Electronics Energy_and_Power Finance Geography "
    "History Literature Manage Marketing Materials Math Mechanical_Engineering Music Pharmacy "
    "Physics Psychology Public_Health Sociology"
)

MMMU = Benchmark(
    name="mmmu",
    family="visual",
    title="MMMU (validation)",
    source=Source(
        hub="MMMU/MMMU",
        config=tuple(_MMMU_SUBJECTS.split()),
        split="validation",
        revision="98e6ac0cb9b7b2cd2c991b85a50762edc4aedc68",
        files=("mmmu/validation.jsonl", "mmmu/answer_dict_val.json"),
    ),
    items=(900,),
    identify=lambda row: str(pick(row, "id")),
    messages=_mmmu,
    gold=_mmmu_gold,
    grader="mmmu",
    tally=mmmu_tally,
    sampling=GREEDY,
    images=_mmmu_images,
    licence="Apache-2.0",
    aliases=("mmmu_val",),
    note="validation; answer_dict_val.json has gold answers only: enough to grade, not to sample. "
    "The official rule guesses at random where no option is found: its scores move with the seed",
)

VISUAL: tuple[Benchmark, ...] = (
    MATHVISTA,
    MATHVISION,
    MATHVISION_MINI,
    MATHVERSE,
    WEMATH,
    DYNAMATH,
    HALLUSIONBENCH,
    LOGICVISTA,
    MMMU,
)
