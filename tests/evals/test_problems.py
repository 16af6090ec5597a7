"""Files of items are read strictly: whatever is wrong is named by file and line."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from evals.benchmarks import find
from evals.benchmarks.base import Benchmark, Source, pick, text_id, user
from evals.benchmarks.places import placed, told
from evals.benchmarks.problems import load_problems, rows_digest
from evals.benchmarks.reading import read_items
from reopold.config import ConfigError

GOOD = {"id": "a", "prompt": [{"role": "user", "content": "1+1="}], "answer": "2"}
MICRO = find("micro_maths")

QUIZ = Benchmark(
    name="quiz",
    family="visual",
    title="Quiz",
    source=Source(files=("quiz/items.json", "quiz/*/items.json")),
    items=(3, 2),
    identify=lambda row: f"{pick(row, 'id')}{row.get('source', '')}",
    messages=lambda row: user(str(pick(row, "question"))) if "question" in row else [],
    gold=lambda row: str(pick(row, "answer")),
    grader="integer",
    licence="ours",
    images=lambda row: [row["image"]] if row.get("image") else [],
    cluster=lambda row: str(row["id"]),
)
ROWS = [{"id": f"q{i}", "question": f"{i}?", "answer": i} for i in range(3)]


@pytest.fixture(autouse=True)
def _no_shared_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REOPOLD_BENCHMARKS", raising=False)


def _write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


# The micro suite's file


def test_problems_are_read_in_order_with_the_file_s_digest(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    # U+2028 is a line separator to str.splitlines, and plain text to JSON.
    second = GOOD | {"id": "b", "answer": "\u2028 3", "completion": "1+1=2;#2"}
    text = f"{json.dumps(GOOD)}\n\n{json.dumps(second, ensure_ascii=False)}\n"
    file.write_text(text, encoding="utf-8")
    problems = load_problems(MICRO, file)
    assert [problem.id for problem in problems.problems] == ["a", "b"]
    assert problems.problems[0].row == GOOD and problems.problems[0].messages == GOOD["prompt"]
    assert [problem.gold for problem in problems.problems] == ["2", "3"]
    assert problems.digest == hashlib.sha256(text.encode()).hexdigest()
    assert (problems.origin, problems.revision) == (str(file), None)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ('{"id": "b", "prompt"', "line 2 is not JSON"),
        ("9" * 5000, "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("[1]", "line 2: the line is no JSON object but of type list"),
        (json.dumps(GOOD), "line 2: id 'a' is there twice"),
        (json.dumps({"id": "b", "answer": "2"}), "line 2: prompt: Field required"),
        (json.dumps(GOOD | {"id": "b", "answer": 2}), "line 2: answer"),
        (json.dumps(GOOD | {"id": "b", "answer": ""}), "line 2: answer"),
        (json.dumps(GOOD | {"id": "b", "prompt": []}), "line 2: prompt"),
        (json.dumps(GOOD | {"id": "b", "prompt": GOOD["prompt"] * 2}), "line 2: prompt"),  # type: ignore[operator]
        (
            json.dumps(GOOD | {"id": "b", "prompt": [{"role": "system", "content": "x"}]}),
            "line 2: prompt.0.role: Input should be 'user'",
        ),
    ],
)
def test_a_fault_is_named_by_its_line(tmp_path: Path, fault: str, message: str) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n{fault}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_problems(MICRO, file)
    assert message in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("micro_maths", {"environment": "calculator"}, "environment"),
        ("micro_maths", {"images": ["a.png"]}, "images"),
        ("micro_visual", {"version": "v"}, "images: Field required"),
        ("micro_visual", {"version": "v", "images": []}, "images"),
        ("micro_visual", {"images": ["a.png"]}, "version: Field required"),
        ("micro_tools", {}, "environment: Field required"),
        ("micro_tools", {"environment": "python"}, "environment"),
    ],
)
def test_a_line_is_of_its_own_suite(
    tmp_path: Path, name: str, more: dict[str, Any], message: str
) -> None:
    """Another suite's would be asked without its images or its tool."""
    file = _write(tmp_path / "test.jsonl", GOOD | more)
    with pytest.raises(ConfigError, match=message):
        load_problems(find(name), file)


def test_every_suite_reads_its_lines(tmp_path: Path) -> None:
    visual = {"images": ["a.png"], "version": "v", "id": "a/v"}
    for name, more in {
        "micro_maths": {},
        "micro_visual": visual,
        "micro_tools": {"environment": "calculator"},
    }.items():
        _write(tmp_path / name / "test.jsonl", GOOD | more)
        (problem,) = load_problems(find(name), tmp_path).problems
        assert (problem.gold, problem.messages) == ("2", GOOD["prompt"])
        assert len(problem.images) == len(more.get("images", []))
    assert problem.cluster == "a"


def test_missing_empty_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no test problems at"):
        load_problems(MICRO, tmp_path / "absent.jsonl")
    with pytest.raises(
        ConfigError, match=r"no problems of micro_maths: looked for micro_maths/test\.jsonl"
    ):
        load_problems(MICRO, tmp_path)
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(ConfigError, match="holds no problems"):
        load_problems(MICRO, tmp_path / "empty")
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(ConfigError, match="holds no problems"):
        load_problems(MICRO, tmp_path / "empty.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_problems(MICRO, tmp_path / "binary")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 100)[:-9])
    with pytest.raises(ConfigError, match="cannot be read"):
        load_problems(MICRO, tmp_path / "cut.jsonl.gz")


# Formats

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4
)
_rows = st.lists(
    st.dictionaries(st.text(min_size=1), _values, min_size=1).map(lambda row: {"id": "x"} | row),
    min_size=1,
    max_size=4,
)


@settings(max_examples=40)
@given(rows=_rows, form=st.sampled_from(["lines", "lines.json", "list", "pretty", "gz", "keyed"]))
def test_every_format_gives_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], form: str
) -> None:
    folder = tmp_path_factory.mktemp("formats")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path = folder / "rows.json"
    if form == "lines":
        path = folder / "rows.jsonl"
        path.write_bytes(lines.encode("utf-8"))
    elif form == "lines.json" and len(rows) > 1:
        path.write_bytes(lines.encode("utf-8"))
    elif form == "gz":
        path = folder / "rows.jsonl.gz"
        path.write_bytes(gzip.compress(lines.encode("utf-8")))
    elif form == "keyed":
        rows = [{"id": str(i), "value": row} for i, row in enumerate(rows)]
        path.write_text(json.dumps({row["id"]: {"value": row["value"]} for row in rows}))
    else:
        path.write_text(json.dumps(rows, indent=2 if form == "pretty" else None))
    assert [item.row for item in read_items(path)] == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": 1},\n{"id": }]', r"rows\.json is not JSON: .* line 2"),
        ('{"id": 1}\n{"id": }\n', r"rows\.json, line 2 is not JSON"),
        ('[{"id": 1}, 2]', r"rows\.json, item 2: the line is no JSON object but of type int"),
        ('"rows"', r"rows\.json: the line is no JSON object but of type str"),
    ],
)
def test_a_malformed_document_says_where(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_items(path)


def test_an_item_keeps_its_own_id_in_a_keyed_file(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.json", {"k": {"id": "own", "a": 1}, "l": {"a": 2}})
    assert [item.row["id"] for item in read_items(path)] == ["own", "l"]


# Counts, names, subsets


@pytest.mark.parametrize("count", [0, 1, 4])
def test_any_other_number_of_items_is_refused(tmp_path: Path, count: int) -> None:
    rows = [{"id": i, "question": "?", "answer": 1} for i in range(count)]
    path = _write(tmp_path / "items.json", rows)
    expected = f"holds {count} items; quiz has 3 or 2" if count else "holds no problems"
    with pytest.raises(ConfigError, match=expected):
        load_problems(QUIZ, path)


def test_a_subset_is_called_one_and_the_count_is_checked_before_the_limit(tmp_path: Path) -> None:
    whole = _write(tmp_path / "whole.json", ROWS)
    assert load_problems(QUIZ, whole).origin == str(whole)
    limited = load_problems(QUIZ, whole, limit=1)
    assert [problem.id for problem in limited.problems] == ["q0"]
    assert limited.digest == load_problems(QUIZ, whole).digest
    subset = _write(tmp_path / "subset.json", ROWS[:2])
    assert load_problems(QUIZ, subset).origin == f"{subset} (2 items; the main set has 3)"
    with pytest.raises(ConfigError, match="holds 1 items"):
        load_problems(QUIZ, _write(tmp_path / "cut.json", ROWS[:1]), limit=1)


def test_a_fault_in_a_benchmark_s_own_schema_names_the_item(tmp_path: Path) -> None:
    rows = [*ROWS[:2], {"id": "q2", "question": "?"}]
    path = _write(tmp_path / "items.json", rows)
    with pytest.raises(ConfigError, match=r"item 3: a record has no field 'answer' \(it has: id"):
        load_problems(QUIZ, path)


def test_repeated_ids_are_an_error_unless_the_data_set_itself_repeats_them(tmp_path: Path) -> None:
    path = _write(tmp_path / "items.json", [ROWS[0], ROWS[0], ROWS[1]])
    with pytest.raises(ConfigError, match="item 2: id 'q0' is there twice"):
        load_problems(QUIZ, path)
    repeating = replace(QUIZ, source=replace(QUIZ.source, repeats=True))
    problems = load_problems(repeating, path).problems
    assert [problem.id for problem in problems] == ["q0", "q0-2", "q1"]
    assert [problem.cluster for problem in problems] == ["q0", "q0", "q1"]


def test_an_item_without_a_name_is_called_by_its_text() -> None:
    expected = hashlib.sha256("1+1=?\ud800".encode("utf-8", "surrogatepass")).hexdigest()[:12]
    assert text_id("1+1=?\ud800") == expected


# Places


def test_the_named_file_comes_first_then_the_variable_then_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_problems(QUIZ)
    for part in ("quiz has no data here", "quiz/items.json", "REOPOLD_BENCHMARKS", "--data"):
        assert part in str(caught.value)
    at_home = _write(Path(os.environ["REOPOLD_HOME"]) / "benchmarks/quiz/items.json", ROWS)
    assert load_problems(QUIZ).origin == str(at_home)
    shared = _write(tmp_path / "shared/quiz/items.json", ROWS)
    monkeypatch.setenv("REOPOLD_BENCHMARKS", str(tmp_path / "shared"))
    assert load_problems(QUIZ).origin == str(shared)
    own = _write(tmp_path / "own/items.json", ROWS)
    for data in (own, own.parent, str(own)):
        assert load_problems(QUIZ, data).origin == str(own)
    assert load_problems(QUIZ, tmp_path / "shared").origin == str(shared)
    monkeypatch.setenv("REOPOLD_BENCHMARKS", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="REOPOLD_BENCHMARKS names no folder"):
        load_problems(QUIZ)


def test_a_folder_of_another_benchmark_is_refused(tmp_path: Path) -> None:
    rows = [{"id": i, "problem": "?", "answer": i} for i in range(30)]
    file = tmp_path / "aime25/test.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(load_problems(find("aime25"), file).problems) == 30
    assert len(load_problems(find("aime25_python"), file.parent).problems) == 30
    for data in (file, file.parent):
        with pytest.raises(ConfigError, match=r"is aime25's, not aime24's"):
            load_problems(find("aime24"), data)
    file.with_name("micro.jsonl").write_text(json.dumps(GOOD))
    assert len(load_problems(MICRO, file.with_name("micro.jsonl")).problems) == 1
    renamed = file.parent.rename(tmp_path / "mine")
    assert len(load_problems(find("aime24"), renamed).problems) == 30


def test_several_files_are_read_in_order_and_say_where_each_row_is_from(tmp_path: Path) -> None:
    for number in (2, 1):
        _write(tmp_path / f"quiz/t{number}/items.json", [ROWS[0] | {"image": "i.png"}])
        (tmp_path / f"quiz/t{number}/i.png").write_bytes(b"png")
    problems = load_problems(QUIZ, tmp_path)
    assert [p.id for p in problems.problems] == ["q0t1/items.json", "q0t2/items.json"]
    assert {p.cluster for p in problems.problems} == {"q0"}
    assert [p.images for p in problems.problems] == [
        [str(tmp_path / f"quiz/t{number}/i.png")] for number in (1, 2)
    ]
    listing = "".join(
        f"{hashlib.sha256((tmp_path / 'quiz' / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("t1/items.json", "t2/items.json")
    )
    assert problems.digest == hashlib.sha256(listing.encode()).hexdigest()
    assert problems.origin == f"{tmp_path / 'quiz'} (2 files) (2 items; the main set has 3)"


def test_a_folder_of_files_that_belong_together_is_read_by_the_benchmark(tmp_path: Path) -> None:
    def read(place: Path) -> list[dict[str, Any]]:
        return [dict(row) for row in ROWS if (place / "here").is_file()]

    joined = replace(QUIZ, source=Source(files=("quiz",), read=read))
    (tmp_path / "quiz").mkdir()
    (tmp_path / "quiz/here").touch()
    for data in (tmp_path, tmp_path / "quiz"):
        problems = load_problems(joined, data)
        assert len(problems.problems) == 3 and problems.digest == rows_digest(ROWS)


# Samplable or not


def test_images_are_found_near_the_file_and_missed_only_for_sampling(tmp_path: Path) -> None:
    rows = [row | {"image": f"{row['id']}.png"} for row in ROWS]
    file = _write(tmp_path / "quiz/items.json", rows)
    (tmp_path / "quiz/images").mkdir()
    places = ["quiz/q0.png", "quiz/images/q1.png", "q2.png"]
    for place in places:
        Image.new("RGB", (2, 2)).save(tmp_path / place)
    problems = load_problems(QUIZ, file)
    assert [p.images for p in problems.problems] == [[str(tmp_path / place)] for place in places]
    problems.check_samplable()
    (tmp_path / "q2.png").unlink()
    problems = load_problems(QUIZ, file)
    shown_twice = replace(problems, problems=[*problems.problems, *problems.problems])
    with pytest.raises(ConfigError, match=r"1 images of .* are not there \(.*q2\.png\)"):
        shown_twice.check_samplable()
    load_problems(QUIZ, file, limit=2).check_samplable()


def test_answers_without_questions_are_enough_to_grade_only(tmp_path: Path) -> None:
    rows = [{"id": row["id"], "answer": row["answer"]} for row in ROWS]
    problems = load_problems(QUIZ, _write(tmp_path / "items.json", rows))
    assert [problem.gold for problem in problems.problems] == ["0", "1", "2"]
    with pytest.raises(ConfigError, match=r"answers without questions \(q0, q1, q2\)"):
        problems.check_samplable()


def test_results_say_nothing_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REOPOLD_HOME", str(tmp_path / ".reopold"))
    inside = tmp_path / ".reopold" / "runs" / "a" / ".." / ".." / "micro" / "test.jsonl"
    assert told(str(inside)) == ".reopold/micro/test.jsonl"
    # From wherever the report is drawn, it is found again.
    monkeypatch.chdir("/")
    assert placed(told(str(inside))) == tmp_path / ".reopold" / "micro" / "test.jsonl"
    assert told("math-ai/aime25") == "math-ai/aime25"
    given = str(tmp_path / "aime.jsonl")
    assert told(given) == given and placed(given) == Path(given)
