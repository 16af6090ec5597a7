"""Procedural maths with chains of reasoning, and the missing skill that tells methods apart.

A problem is 3 to 6 one-digit operands joined by +, -, *, evaluated from left to right modulo 10.
A worked solution writes every step, then the answer:

    prompt    3+4*2-5=
    solution  3+4=7;7*2=4;4-5=9;#9

The student's worked solutions get a share of one kind of step wrong (`*` by an operand of 4 or
more), the teacher's none: what the student lacks is one skill, not length or format.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reopold.study_config import MicroConfig

Split = Literal["train", "validation", "test"]

OPERATORS = "+-*"
#: What the texts need beyond the tokenizer's own characters: further ones, texts that are one token
#: each, and tokens that stand for no text.
CHARACTERS, FRAGMENTS, SPECIAL = "", (), ()
MIN_OPERANDS, MAX_OPERANDS = 3, 6


@dataclass(frozen=True)
class Problem:
    operands: tuple[int, ...]
    operators: str

    @property
    def question(self) -> str:
        rest = "".join(op + str(x) for op, x in zip(self.operators, self.operands[1:], strict=True))
        return f"{self.operands[0]}{rest}="

    @property
    def answer(self) -> str:
        result = self.operands[0]
        for operator, operand in zip(self.operators, self.operands[1:], strict=True):
            result = apply(operator, result, operand)
        return str(result)

    @property
    def split(self) -> Split:
        """Decided by the question's hash: splits are disjoint whatever seed drew the problems."""
        bucket = hashlib.sha256(self.question.encode()).digest()[0]
        if bucket < 26:
            return "test"
        return "validation" if bucket < 52 else "train"


def apply(operator: str, left: int, right: int) -> int:
    """One step, modulo 10."""
    value = {"+": left + right, "-": left - right, "*": left * right}[operator]
    return value % 10


def lacks_skill(operator: str, right: int) -> bool:
    """The kind of step that the student was taught wrongly."""
    return operator == "*" and right >= 4


def solve(problem: Problem, rng: random.Random, wrong: float = 0.0) -> str:
    """A worked solution; steps of the missing skill get a wrong result with probability `wrong`.

    The chain goes on from the wrong result, as a model's would.
    """
    steps, left = [], problem.operands[0]
    for operator, right in zip(problem.operators, problem.operands[1:], strict=True):
        result = apply(operator, left, right)
        if lacks_skill(operator, right) and rng.random() < wrong:
            result = (result + rng.randrange(1, 10)) % 10
        steps.append(f"{left}{operator}{right}={result};")
        left = result
    return "".join(steps) + f"#{left}"


def draw(split: Split, count: int, seed: int) -> list[Problem]:
    """`count` distinct problems of a split (there are over two million), the same for a seed."""
    rng = random.Random(f"{seed}/{split}")
    problems: dict[Problem, None] = {}
    while len(problems) < count:
        size = rng.randint(MIN_OPERANDS, MAX_OPERANDS)
        problem = Problem(
            operands=tuple(rng.randrange(10) for _ in range(size)),
            operators="".join(rng.choice(OPERATORS) for _ in range(size - 1)),
        )
        if problem.split == split:
            problems[problem] = None
    return list(problems)


def write(folder: Path, config: MicroConfig) -> None:
    """Write `folder/{train,validation,test,sft-teacher,sft-student}.jsonl`."""
    folder.mkdir(parents=True)
    counts: dict[Split, int] = {
        "train": config.train_problems,
        "validation": config.validation_problems,
        "test": config.test_problems,
    }
    problems = {split: draw(split, count, config.problems_seed) for split, count in counts.items()}
    for split, drawn in problems.items():
        write_lines(folder / f"{split}.jsonl", [_record(p) for p in drawn])
    wrong = {"teacher": 0.0, "student": config.missing_skill_wrong}
    for role, share in wrong.items():
        rng = random.Random(f"{config.problems_seed}/{role}")
        lines = [{**_record(p), "completion": solve(p, rng, share)} for p in problems["train"]]
        write_lines(folder / f"sft-{role}.jsonl", lines)


def _record(problem: Problem) -> dict[str, Any]:
    return {
        "id": problem.question,
        "prompt": [{"role": "user", "content": problem.question}],
        "answer": problem.answer,
    }


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """A JSON object a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
