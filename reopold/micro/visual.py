"""Procedural maths about pictures, and the missing skill that tells methods apart.

A picture shows four of six shapes in a grid, each with a digit inside. A problem combines the
digits of three or four of them, named by their letters, from left to right modulo 10. A worked
solution reads the digits, then writes every step as the maths suite does:

    prompt    <image>c+s*t=             the digits are in the picture alone
              <image>c3+s4*t2=          the digits are in the text as well
    solution  c3s4t2;3+4=7;7*2=4;#4

Each problem is there in both versions, which have one answer: what the second gets right and the
first does not is seeing, not reckoning (MathVerse, arXiv 2403.14624, has the two among its six).
The student's worked solutions misread, in pictures, a share of the digits in diamonds and hexagons,
the teacher's none. Never in triangles: there a digit stands lower than elsewhere, and a student
taught mostly wrongly about it does not see it at all, so that no sample of its own can be right but
by chance.

Worked solutions alone leave a small tower blind for long: a digit is a few tokens of each, found
only once its shape is. So both models are also taught readings of whole pictures, `<image>=` to
`c3s4t2d7`, in which the student misreads alike.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from reopold.data.images import PLACEHOLDER
from reopold.micro.drawing import GRID, draw_grid
from reopold.micro.maths import OPERATORS, Split, apply, write_lines
from reopold.study_config import MicroConfig

#: Circle, square, triangle, diamond, hexagon, plus.
SHAPES = "cstdhp"
#: What the texts need beyond the characters of the maths suite, and the token of an image.
CHARACTERS, FRAGMENTS, SPECIAL = SHAPES, (), (PLACEHOLDER,)
MIN_OPERANDS, MAX_OPERANDS = 3, 4

Version = Literal["text_dominant", "vision_only"]
Cell = tuple[str, int]


@dataclass(frozen=True)
class Problem:
    cells: tuple[Cell, ...]
    """Shape and digit, row by row; no shape twice."""
    shapes: str
    """Of the operands, in the question's order."""
    operators: str
    version: Version

    @property
    def digits(self) -> tuple[int, ...]:
        """Of the operands."""
        inside = dict(self.cells)
        return tuple(inside[shape] for shape in self.shapes)

    @property
    def question(self) -> str:
        shown = self.version == "text_dominant"
        names = [
            f"{shape}{digit}" if shown else shape
            for shape, digit in zip(self.shapes, self.digits, strict=True)
        ]
        rest = "".join(op + name for op, name in zip(self.operators, names[1:], strict=True))
        return f"{PLACEHOLDER}{names[0]}{rest}="

    @property
    def answer(self) -> str:
        result = self.digits[0]
        for operator, digit in zip(self.operators, self.digits[1:], strict=True):
            result = apply(operator, result, digit)
        return str(result)

    @property
    def picture(self) -> str:
        """Name of the picture, which says all that is in it: `c3s4t2d7`."""
        return _text(self.cells)

    @property
    def split(self) -> Split:
        """Decided by the picture's hash: no split shows a picture of another, in any version."""
        bucket = hashlib.sha256(self.picture.encode()).digest()[0]
        if bucket < 26:
            return "test"
        return "validation" if bucket < 52 else "train"


def lacks_skill(shape: str) -> bool:
    """Whether the student was taught to misread the digits in it."""
    return shape in "dh"


def read(cells: Sequence[Cell], rng: random.Random, wrong: float = 0.0) -> list[Cell]:
    """The cells as a model is taught to see them: of the missing skill, a share `wrong` is not what
    it is."""
    seen = []
    for shape, digit in cells:
        misread = lacks_skill(shape) and rng.random() < wrong
        seen.append((shape, (digit + rng.randrange(1, 10)) % 10 if misread else digit))
    return seen


def solve(problem: Problem, rng: random.Random, wrong: float = 0.0) -> str:
    """A worked solution; the student's reading of a picture is wrong at the rate of :func:`read`.

    The chain goes on from what was read, as a model's would.
    """
    operands = list(zip(problem.shapes, problem.digits, strict=True))
    seen = read(operands, rng, wrong if problem.version == "vision_only" else 0.0)
    steps, left = [], seen[0][1]
    for operator, (_, right) in zip(problem.operators, seen[1:], strict=True):
        result = apply(operator, left, right)
        steps.append(f"{left}{operator}{right}={result};")
        left = result
    return f"{_text(seen)};{''.join(steps)}#{left}"


def draw(split: Split, count: int, seed: int) -> list[Problem]:
    """`count` distinct problems of a split, the two versions of each in turn, the same for a seed;
    an odd count leaves out the last one's second version."""
    rng = random.Random(f"{seed}/visual/{split}")
    problems: dict[Problem, None] = {}
    while len(problems) < count:
        shown = rng.sample(SHAPES, GRID**2)
        cells = tuple((shape, rng.randrange(10)) for shape in shown)
        size = rng.randint(MIN_OPERANDS, MAX_OPERANDS)
        shapes = "".join(rng.sample(shown, size))
        operators = "".join(rng.choice(OPERATORS) for _ in range(size - 1))
        for version in get_args(Version):
            problem = Problem(cells, shapes, operators, version)
            if problem.split == split:
                problems[problem] = None
    return list(problems)[:count]


def write(folder: Path, config: MicroConfig) -> None:
    """Write `folder/{train,validation,test,sft-teacher,sft-student}.jsonl` and the pictures."""
    counts: dict[Split, int] = {
        "train": config.train_problems,
        "validation": config.validation_problems,
        "test": config.test_problems,
    }
    problems = {split: draw(split, count, config.problems_seed) for split, count in counts.items()}
    (folder / "images").mkdir(parents=True)
    for split, drawn in problems.items():
        write_lines(folder / f"{split}.jsonl", [_record(p) for p in drawn])
        for picture, cells in {p.picture: p.cells for p in drawn}.items():
            draw_grid(cells).save(folder / "images" / f"{picture}.png")
    wrong = {"teacher": 0.0, "student": config.missing_skill_wrong}
    for role, share in wrong.items():
        rng = random.Random(f"{config.problems_seed}/visual/{role}")
        lines = [{**_record(p), "completion": solve(p, rng, share)} for p in problems["train"]]
        pictures = {p.picture: p.cells for p in problems["train"]}
        lines += [_reading(cells, read(cells, rng, share)) for cells in pictures.values()]
        write_lines(folder / f"sft-{role}.jsonl", lines)


def _record(problem: Problem) -> dict[str, Any]:
    return {
        "id": f"{problem.picture}/{problem.shapes}{problem.operators}/{problem.version}",
        "prompt": [{"role": "user", "content": problem.question}],
        "answer": problem.answer,
        "images": [f"images/{problem.picture}.png"],
        "version": problem.version,
    }


def _reading(cells: Sequence[Cell], seen: Sequence[Cell]) -> dict[str, Any]:
    picture = _text(cells)
    return {
        "id": picture,
        "prompt": [{"role": "user", "content": f"{PLACEHOLDER}="}],
        "answer": picture,
        "images": [f"images/{picture}.png"],
        "completion": _text(seen),
    }


def _text(cells: Sequence[Cell]) -> str:
    return "".join(f"{shape}{digit}" for shape, digit in cells)
