"""The visual micro suite: pictures as drawn by hand, right answers, one missing skill."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from reopold.data.prompts import load_prompts
from reopold.data.tokenizers import check_same_tokenizer, load_tokenizer, render
from reopold.micro.build import build_suite
from reopold.micro.drawing import CELL, draw_grid
from reopold.micro.visual import CHARACTERS, SHAPES, Problem, draw, read, solve, write
from reopold.study_config import MicroConfig

CELLS = (("c", 3), ("t", 2), ("s", 4), ("d", 7))
#: The square with a 7 in it, a character for every 2 x 2 pixels of its cell.
SQUARE_WITH_SEVEN = """
................
.##############.
.#............#.
.#............#.
.#............#.
.#....#####...#.
.#........#...#.
.#.......#....#.
.#......#.....#.
.#......#.....#.
.#.....#......#.
.#.....#......#.
.#............#.
.#............#.
.##############.
................
"""


def test_both_versions_by_hand() -> None:
    text, vision = (Problem(CELLS, "cst", "+*", v) for v in ("text_dominant", "vision_only"))
    assert text.question == "<image>c3+s4*t2=" and vision.question == "<image>c+s*t="
    for problem in (text, vision):
        assert solve(problem, random.Random(0)) == "c3s4t2;3+4=7;7*2=4;#4"
        assert problem.answer == "4" and problem.picture == "c3t2s4d7"


def test_solutions_read_the_picture_and_match_python_arithmetic() -> None:
    for problem in draw("train", 400, seed=1):
        solution = solve(problem, random.Random(0))
        inside = dict(problem.cells)
        assert len(inside) == 4 and len(problem.shapes) == len(set(problem.shapes)) in (3, 4)
        reading = re.match(r"((?:[a-z]\d)+);", solution)
        assert reading and reading[1] == "".join(f"{s}{inside[s]}" for s in problem.shapes)
        expression = str(inside[problem.shapes[0]])
        for operator, shape in zip(problem.operators, problem.shapes[1:], strict=True):
            expression = f"(({expression}){operator}{inside[shape]})"
        assert problem.answer == str(eval(expression) % 10)
        assert solution.endswith(f";#{problem.answer}")
        plain = problem.question.removeprefix("<image>").removesuffix("=")
        operands = re.split(r"[-+*]", plain)
        if problem.version == "vision_only":
            assert operands == list(problem.shapes)
        else:
            assert operands == [f"{s}{inside[s]}" for s in problem.shapes]


def test_every_problem_has_both_versions() -> None:
    problems = draw("test", 200, seed=4)
    assert Counter(p.version for p in problems) == {"text_dominant": 100, "vision_only": 100}
    for text, vision in zip(problems[::2], problems[1::2], strict=True):
        assert text.cells == vision.cells and text.answer == vision.answer
        assert text.question != vision.question
    assert len(draw("test", 5, seed=4)) == 5


def test_no_split_shows_a_picture_of_another() -> None:
    pictures = {
        split: {p.picture for seed in (1, 2) for p in draw(split, 200, seed)}
        for split in ("train", "validation", "test")
    }
    for one, other in itertools.combinations(pictures.values(), 2):
        assert not one & other
    assert draw("test", 200, 1) == draw("test", 200, 1) != draw("test", 200, 2)


def test_only_digits_in_diamonds_and_hexagons_are_misread_and_only_in_pictures() -> None:
    rng, misread, seen = random.Random(0), Counter[str](), Counter[str]()
    for problem in draw("train", 4000, seed=3):
        solution = solve(problem, rng, 0.8)
        reading, *steps, last = solution.split(";")
        for shape, digit in re.findall(r"([a-z])(\d)", reading):
            kind = problem.version if shape in "dh" else "known"
            seen[kind] += 1
            misread[kind] += int(digit) != dict(problem.cells)[shape]
        left, *rest = re.findall(r"\d", reading)
        for step, operator, right in zip(steps, problem.operators, rest, strict=True):
            assert step[:4] == f"{left}{operator}{right}="  # of what was read
            left = step[4]
            assert eval(step[:3]) % 10 == int(left)
        assert last == f"#{left}"
    assert misread["known"] == misread["text_dominant"] == 0 < seen["text_dominant"]
    assert misread["vision_only"] / seen["vision_only"] == pytest.approx(0.8, abs=0.03)
    wrong = [read(CELLS, rng, 0.8) for _ in range(2000)]
    rates = np.mean([[a != b for a, b in zip(w, CELLS, strict=True)] for w in wrong], axis=0)
    assert rates == pytest.approx([0.0, 0.0, 0.0, 0.8], abs=0.03)


def test_a_picture_as_drawn_by_hand() -> None:
    picture = draw_grid([("c", 0), ("s", 7), ("h", 9), ("p", 5)])
    assert picture.size == (64, 64) and picture.mode == "L"
    dots = [[char == "#" for char in row] for row in SQUARE_WITH_SEVEN.split()]
    wanted = np.where(np.kron(dots, np.ones((2, 2))), 0, 255)
    assert np.array_equal(np.asarray(picture)[:CELL, CELL:], wanted)


def test_no_two_cells_look_alike_and_none_reaches_into_another() -> None:
    seen = {}
    circle = np.asarray(draw_grid([("c", 0)])) == 0
    for shape, digit in itertools.product(SHAPES, range(10)):
        first = np.asarray(draw_grid([(shape, digit)])) == 0
        assert not first[CELL:].any() and not first[:, CELL:].any()
        last = np.asarray(draw_grid([("c", 0)] * 3 + [(shape, digit)])) == 0
        assert np.array_equal(last[CELL:, CELL:], first[:CELL, :CELL])
        for rows, columns in ((0, 0), (0, CELL), (CELL, 0)):
            there = last[rows : rows + CELL, columns : columns + CELL]
            assert np.array_equal(there, circle[:CELL, :CELL])
        seen[shape, digit] = first
    for one, other in itertools.combinations(seen, 2):
        assert (seen[one] != seen[other]).sum() >= 12, (one, other)


def test_the_suite_is_read_as_prompts_and_is_the_same_bytes_again(tmp_path: Path) -> None:
    config = MicroConfig(train_problems=40, test_problems=6, validation_problems=6)
    for name in ("a", "b"):
        write(tmp_path / name, config)
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    prompts = load_prompts(str(tmp_path / "a" / "train.jsonl"), family="visual")
    assert len(prompts) == 40 and all(len(p.images) == 1 for p in prompts)
    lines = [json.loads(x) for x in (tmp_path / "a" / "test.jsonl").read_text().splitlines()]
    assert [x["version"] for x in lines] == ["text_dominant", "vision_only"] * 3
    for role in ("teacher", "student"):
        taught = load_prompts(
            str(tmp_path / "a" / f"sft-{role}.jsonl"), completions=True, family="visual"
        )
        readings = [p for p in taught if p.messages[0]["content"] == "<image>="]
        assert len(taught) == 60 and len(readings) == 20
        text = "".join(p.completion[0]["content"] + p.messages[0]["content"] for p in taught)
        assert set(text.replace("<image>", "")) <= set("0123456789+-*=;#" + CHARACTERS)
        same = [p.completion[0]["content"] == p.answer for p in readings]
        assert all(same) if role == "teacher" else not all(same)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = MicroConfig(
        families=["visual"],
        train_problems=40,
        test_problems=6,
        validation_problems=6,
        teacher_width=32,
        student_width=16,
    )
    folder = tmp_path_factory.mktemp("suite") / "micro"
    assert build_suite(folder, config)
    return folder


@pytest.mark.parametrize(("role", "patches"), [("student", 4), ("teacher", 16)])
def test_models_are_ordinary_folders_that_see(suite: Path, role: str, patches: int) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(suite / f"{role}-init")
    processor = AutoProcessor.from_pretrained(suite / f"{role}-init")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "c+s="}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == "<|user|><image>c+s=<|assistant|>"
    three, four = (draw_grid([("c", d), ("s", 1), ("t", 2), ("d", 0)]) for d in (3, 4))
    logits = []
    for picture in (three, four):
        inputs = processor(text=[text], images=[picture], return_tensors="pt")
        assert (inputs["input_ids"] == model.config.image_token_id).sum() == patches
        with torch.inference_mode():
            logits.append(model(**inputs).logits[0, -1])
    assert not torch.equal(*logits)
    assert model.config.get_text_config().architectures == ["Qwen3ForCausalLM"]


def test_a_cell_is_one_patch_of_the_student_and_four_of_the_teacher(suite: Path) -> None:
    """Two pictures that differ in one cell differ in its patches alone."""
    from transformers import AutoProcessor

    cells = [("c", 3), ("s", 1), ("t", 2), ("d", 0)]
    other = [*cells[:3], ("p", 8)]
    for role, patches in (("student", {3}), ("teacher", {10, 11, 14, 15})):
        process = AutoProcessor.from_pretrained(suite / f"{role}-init").image_processor
        seen = [
            process(draw_grid(c), return_tensors="pt")["pixel_values"][0, 0] for c in (cells, other)
        ]
        side = len(seen[0]) // 16
        tiles = (seen[0] != seen[1]).unfold(0, 16, 16).unfold(1, 16, 16).reshape(side**2, -1)
        assert {i for i, tile in enumerate(tiles) if tile.any()} == patches
        assert seen[0].max() == 0.0  # paper


def test_both_roles_share_a_tokenizer(suite: Path) -> None:
    check_same_tokenizer(str(suite / "student-init"), str(suite / "teacher-init"))
    tokenizer = load_tokenizer(str(suite / "student-init"))
    for name in ("train", "validation", "test", "sft-student"):
        for prompt in load_prompts(str(suite / "micro_visual" / f"{name}.jsonl"), family="visual"):
            ids = render(tokenizer, prompt.messages, images=1)
            assert tokenizer.convert_ids_to_tokens(ids)[:2] == ["<|user|>", "<image>"]
