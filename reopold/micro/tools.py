"""Procedural maths with a calculator, and the missing skill that tells methods apart.

A problem joins two numbers of two digits, and what comes of them with a third. The second operator
is not written: it follows from what the calculator returned, so that the second call can only be
made after the first. It is `+` where the last digit of the first result is above that of the third
number by 2 or more, `-` where it is below it by 2 or more, and `*` where they are closer.

    user       47*83;26=
    assistant  <tool_call>{"name": "calculator", "arguments": {"expression": "47*83"}}</tool_call>
    tool       3901
    assistant  <tool_call>{"name": "calculator", "arguments": {"expression": "3901-26"}}</tool_call>
    tool       3875
    assistant  #3875

The student's worked solutions take another operator in a share of the problems whose first result
ends in 5 or more, the teacher's in none: what the student lacks is one skill, not the use of the
tool. Both call it from the first token on; without it neither can multiply such numbers.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reopold.environments.arithmetic import calculate
from reopold.micro.maths import OPERATORS, Split, write_lines
from reopold.study_config import MicroConfig

#: All but a call's expression, one token each: a dialogue of two calls is about 45 tokens.
CALL = '<tool_call>{"name": "calculator", "arguments": {"expression": "'
CALL_END = '"}}</tool_call>'
FRAGMENTS = (CALL, CALL_END)
#: What the calculator's faults are written in, and JSON that a model may spell out by itself.
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ /%().,:'\"{}[]<>_\n"
SPECIAL = ("<|tool|>",)
LEAST, MOST = 10, 99


@dataclass(frozen=True)
class Problem:
    first: int
    operator: str
    """Between the first two numbers; the second one is not given."""
    second: int
    third: int

    @property
    def question(self) -> str:
        return f"{self.first}{self.operator}{self.second};{self.third}="

    @property
    def expression(self) -> str:
        """Of the first call."""
        return f"{self.first}{self.operator}{self.second}"

    @property
    def answer(self) -> str:
        result = calculate(self.expression)
        return calculate(f"{result}{second_operator(result, self.third)}{self.third}")

    @property
    def split(self) -> Split:
        """Decided by the question's hash: splits are disjoint whatever seed drew the problems."""
        bucket = hashlib.sha256(self.question.encode()).digest()[0]
        if bucket < 26:
            return "test"
        return "validation" if bucket < 52 else "train"


def second_operator(result: str, third: int) -> str:
    """What joins the first result, as the calculator wrote it, with the third number."""
    ahead = int(result[-1]) - third % 10
    return "*" if abs(ahead) < 2 else "+" if ahead > 0 else "-"


def lacks_skill(result: str) -> bool:
    """The kind of first result after which the student was taught a wrong operator."""
    return result[-1] in "56789"


def solve(problem: Problem, rng: random.Random, wrong: float = 0.0) -> list[dict[str, str]]:
    """A worked solution as a dialogue; of the missing skill a share `wrong` is wrong.

    The calculator is asked with the wrong operator then, and its result is the answer given.
    """
    result = calculate(problem.expression)
    operator = second_operator(result, problem.third)
    if lacks_skill(result) and rng.random() < wrong:
        operator = rng.choice(OPERATORS.replace(operator, ""))
    expression = f"{result}{operator}{problem.third}"
    last = calculate(expression)
    said = (call(problem.expression), result, call(expression), last, f"#{last}")
    roles = ("assistant", "tool", "assistant", "tool", "assistant")
    return [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]


def call(expression: str) -> str:
    """The message that asks the calculator."""
    return f"{CALL}{expression}{CALL_END}"


def draw(split: Split, count: int, seed: int) -> list[Problem]:
    """`count` distinct problems of a split (there are over two million), the same for a seed."""
    rng = random.Random(f"{seed}/tools/{split}")
    problems: dict[Problem, None] = {}
    while len(problems) < count:
        first, second, third = (rng.randint(LEAST, MOST) for _ in range(3))
        problem = Problem(first, rng.choice(OPERATORS), second, third)
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
        rng = random.Random(f"{config.problems_seed}/tools/{role}")
        lines = [{**_record(p), "completion": solve(p, rng, share)} for p in problems["train"]]
        write_lines(folder / f"sft-{role}.jsonl", lines)


def _record(problem: Problem) -> dict[str, Any]:
    return {
        "id": problem.question,
        "prompt": [{"role": "user", "content": problem.question}],
        "answer": problem.answer,
        "environment": "calculator",
    }
