"""The benchmarks' definitions, on the real files where this machine has them."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from evals.benchmarks import BENCHMARKS, find
from evals.benchmarks.base import Graded, Problem
from evals.benchmarks.catalogue import catalogue
from evals.benchmarks.problems import Problems, load_problems
from evals.benchmarks.visual_prompts import options
from evals.grading import GRADERS, grade_many
from evals.grading.verdict import Verdict
from reopold.config import ConfigError

#: Benchmark -> items that the shared files have (their SOURCE.txt).
HERE = {
    "aime24": 30,
    "aime25": 30,
    "amc23": 40,
    "amc12_83": 83,
    "math500": 500,
    "minerva_ocw": 272,
    "olympiadbench": 675,
    "gsm8k": 1319,
    "mathvista": 1000,
    "mathvision_mini": 304,
    "mathverse": 788,
    "wemath": 54,
    "dynamath": 501,
    "hallusionbench": 1129,
    "logicvista": 161,
    "mmmu": 900,
    "aime24_python": 30,
    "aime25_python": 30,
    "amc23_python": 40,
    "math500_python": 500,
    "gsm8k_python": 1319,
    "bfcl": 1554,
    "tau2_mock": 10,
    "humaneval": 164,
    "leetcode": 200,
    "codeforces": 408,
}
#: Not on GitHub, so not in the shared files; the micro suite has files of its own.
MICRO = {"micro_maths", "micro_visual", "micro_tools"}
ELSEWHERE = {"math", "mathvision", "livecodebench"} | MICRO


@pytest.fixture(scope="module")
def loaded(benchmarks_dir: Path) -> dict[str, Problems]:
    return {name: load_problems(find(name), benchmarks_dir) for name in HERE}


def _rows(path: Path) -> Any:
    """What a plain reader makes of a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.split("\n") if line]
    return json.loads(text)


# Definitions


def test_every_benchmark_is_accounted_for() -> None:
    assert set(BENCHMARKS) == set(HERE) | ELSEWHERE


def test_names_and_aliases_mean_one_benchmark_each() -> None:
    names = Counter(
        re.sub("[-_ ]", "", name.lower())
        for benchmark in BENCHMARKS.values()
        for name in (benchmark.name, *benchmark.aliases)
    )
    assert [name for name, count in names.items() if count > 1] == []
    for name, meant in {
        "AIME-2024": "aime24",
        "math_500": "math500",
        "hendrycks_math": "math",
        "minerva_math": "minerva_ocw",
        "amc_2022_2023": "amc12_83",
        "gsm8k_tools": "gsm8k_python",
        "bfcl_v4": "bfcl",
        "lcb": "livecodebench",
        "MathVision": "mathvision",
    }.items():
        assert find(name).name == meant


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_definition_is_whole(name: str) -> None:
    benchmark = BENCHMARKS[name]
    source = benchmark.source
    assert benchmark.grader in GRADERS and benchmark.licence and benchmark.title
    assert benchmark.items or name in MICRO
    assert source.files
    assert source.revision is None or re.fullmatch("[0-9a-f]{40}", source.revision)
    assert source.hub or source.revision is None
    greedy = benchmark.sampling.temperature == 0.0
    assert not (greedy and benchmark.sampling.samples > 1), "greedy samples would all be one"


def test_licences_that_forbid_commerce_or_training_say_so() -> None:
    for name in ("minerva_ocw", "wemath"):
        assert "NON-COMMERCIAL" in find(name).licence
    assert "no training" in find("mathvista").licence


def test_asking_with_an_interpreter_changes_nothing_but_the_question(
    loaded: dict[str, Problems],
) -> None:
    for name in ("aime24", "aime25", "amc23", "math500", "gsm8k"):
        plain, tool = find(name), find(f"{name}_python")
        assert (tool.grader, tool.items, tool.sampling) == (
            plain.grader,
            plain.items,
            plain.sampling,
        )
        assert (plain.environment, tool.environment, tool.family) == ("", "python", "tools")
        a, b = loaded[name], loaded[f"{name}_python"]
        assert a.digest == b.digest
        assert [(p.id, p.gold) for p in a.problems] == [(p.id, p.gold) for p in b.problems]
        text = b.problems[0].messages[0]["content"]
        assert "```python" in text and "```output" in text and r"\boxed{}" in text


# The real files


@pytest.mark.parametrize("name", sorted(HERE))
def test_every_item_can_be_graded_and_names_itself(loaded: dict[str, Problems], name: str) -> None:
    problems = loaded[name].problems
    benchmark = find(name)
    assert len(problems) == HERE[name]
    assert len({problem.id for problem in problems}) == HERE[name]
    whole = HERE[name] == benchmark.items[0]
    assert ("main set has" not in loaded[name].origin) == whole
    without_gold = [problem.id for problem in problems if not problem.gold.strip()]
    assert without_gold == (["v1_382"] if name == "logicvista" else [])
    for problem in problems:
        text = "".join(message["content"] for message in problem.messages)
        assert text.count("<image>") == len(problem.images)
        assert (len(text) > 20) != (name == "mmmu")
        assert problem.cluster


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("mathvista", 1000),
        ("mathvision_mini", 304),
        ("mathverse", 0),  # version Text Only
        ("wemath", 54),
        ("dynamath", 501),
        ("hallusionbench", 951),
        ("logicvista", 161),
    ],
)
def test_visual_items_have_their_images(
    loaded: dict[str, Problems], name: str, images: int
) -> None:
    assert sum(len(problem.images) for problem in loaded[name].problems) == images


def test_the_images_that_are_here_are_found(loaded: dict[str, Problems]) -> None:
    there = {
        name: sum(Path(image).is_file() for p in loaded[name].problems for image in p.images)
        for name in ("mathvision_mini", "wemath", "dynamath", "logicvista")
    }
    assert there == {"mathvision_mini": 53, "wemath": 54, "dynamath": 48, "logicvista": 12}
    loaded["wemath"].check_samplable()
    with pytest.raises(ConfigError, match="251 images"):
        loaded["mathvision_mini"].check_samplable()
    with pytest.raises(ConfigError, match="answers without questions"):
        loaded["mmmu"].check_samplable()


def test_items_that_belong_together_are_one_cluster(loaded: dict[str, Problems]) -> None:
    clusters = {
        name: len({problem.cluster for problem in loaded[name].problems})
        for name in ("wemath", "mathverse", "dynamath", "leetcode", "math500")
    }
    assert clusters == {
        "wemath": 16,
        "mathverse": 788,
        "dynamath": 501,
        "leetcode": 185,
        "math500": 500,
    }
    for problem in loaded["hallusionbench"].problems:
        row = problem.row
        assert problem.cluster == f"{row['category']}/{row['subcategory']}/{row['set_id']}"


@pytest.mark.parametrize("name", ["wemath", "hallusionbench", "dynamath", "math500"])
@pytest.mark.parametrize("limit", [1, 5, 50])
def test_a_limit_takes_whole_clusters(
    loaded: dict[str, Problems], benchmarks_dir: Path, name: str, limit: int
) -> None:
    every = loaded[name].problems
    some = load_problems(find(name), benchmarks_dir, limit=limit).problems
    kept = list(dict.fromkeys(problem.cluster for problem in some))
    assert kept == list(dict.fromkeys(p.cluster for p in every))[: len(kept)]
    assert some == [problem for problem in every if problem.cluster in set(kept)]
    assert some
    if len(kept) > 1:
        assert len(some) <= limit
    following = [p for p in every if p.cluster == _cluster_after(every, kept)]
    assert len(some) + len(following) > limit


def _cluster_after(problems: list[Problem], kept: list[str]) -> str:
    return next(p.cluster for p in problems if p.cluster not in kept)


def test_golds_are_those_of_the_files(loaded: dict[str, Problems], benchmarks_dir: Path) -> None:
    aime = _rows(benchmarks_dir / "aime24/test.jsonl")
    assert [p.gold for p in loaded["aime24"].problems] == [r["expected_answer"] for r in aime]
    amc = _rows(benchmarks_dir / "amc23/test.jsonl")
    assert [p.gold for p in loaded["amc23"].problems] == [f"{r['answer']:.0f}" for r in amc]
    gsm = _rows(benchmarks_dir / "gsm8k/test.jsonl")
    assert [p.gold for p in loaded["gsm8k"].problems] == [
        r["answer"].split("\n")[-1].removeprefix("#### ") for r in gsm
    ]
    minerva = _rows(benchmarks_dir / "minerva_math/test.jsonl")
    for problem, row in zip(loaded["minerva_ocw"].problems, minerva, strict=True):
        box = f"\\boxed{{{problem.gold}}}"
        assert "".join(box.split()) in "".join(row["solution"].split())
    hallusion = Counter(p.gold for p in loaded["hallusionbench"].problems)
    published = Counter(
        r["gt_answer"] for r in _rows(benchmarks_dir / "hallusionbench/HallusionBench.json")
    )
    assert hallusion == {"yes": published["1"], "no": published["0"]}
    assert find("aime24").gold({"Answer": 25}) == find("aime24").gold({"answer": "025"}) == "25"


def test_prompts_ask_for_the_form_that_graders_read(loaded: dict[str, Problems]) -> None:
    for name in ("math500", "minerva_ocw", "olympiadbench", "gsm8k", "aime25", "amc23", "amc12_83"):
        assert all(
            r"\boxed{}" in problem.messages[0]["content"] for problem in loaded[name].problems
        )
    assert "integer between 0 and 999" in loaded["aime24"].problems[0].messages[0]["content"]
    assert "<Answer>: <<your option>>" in loaded["wemath"].problems[0].messages[0]["content"]
    assert '"short answer"' in loaded["dynamath"].problems[0].messages[0]["content"]
    assert loaded["bfcl"].problems[0].messages[0]["role"] == "system"


def test_mathvista_s_queries_are_the_published_ones(loaded: dict[str, Problems]) -> None:
    by_id = {problem.id: problem.messages[0]["content"] for problem in loaded["mathvista"].problems}
    # The example of the authors' README.
    assert by_id["5"] == (
        "<image>\nHint: Please answer the question and provide the correct option letter, e.g., "
        "A, B, C, D, at the end.\nQuestion: Find $m\\angle H$\nChoices:\n"
        "(A) 97\n(B) 102\n(C) 107\n(D) 122"
    )
    assert "with one decimal place and provide the final value, e.g., 1.2, 1.3, 1.4" in by_id["1"]
    assert all(text == text.strip() for text in by_id.values()), "as in their data/query.json"
    # Its table of task instructions: how many items ask for what.
    kinds = Counter(text.split("\n")[1].split(", e.g.")[0][44:] for text in by_id.values())
    assert sorted(kinds.values()) == [2, 20, 20, 418, 540]


def test_math_vision_lists_options_only_where_the_figure_does_not(
    loaded: dict[str, Problems],
) -> None:
    kinds: Counter[str] = Counter()
    for problem in loaded["mathvision_mini"].problems:
        text, choices = problem.messages[0]["content"], problem.row["options"]
        question = problem.row["question"]
        asked = text[text.index(question) + len(question) :]
        if choices and choices != ["A", "B", "C", "D", "E"]:
            assert asked == "\n" + "".join(
                f"({letter}) {choice}\n" for letter, choice in zip("ABCDE", choices, strict=True)
            )
            kinds["listed"] += 1
        else:
            assert asked == "\n"
            kinds["drawn" if choices else "free"] += 1
    assert min(kinds["listed"], kinds["drawn"], kinds["free"]) > 10


def test_two_formats_of_code_problems() -> None:
    row = {"question_content": "Add.", "starter_code": "class Solution:\n    def add(self):"}
    form = find("livecodebench").messages
    functional = form(row)[0]["content"]
    assert functional.endswith("```python\nclass Solution:\n    def add(self):\n```")
    assert "stdin" not in functional
    assert "stdin" in form(row | {"starter_code": ""})[0]["content"]


def test_livecodebench_without_tests_is_refused(benchmarks_dir: Path, tmp_path: Path) -> None:
    file = benchmarks_dir / "livecodebench/livecodebench_v5_window_prompts.jsonl"
    with pytest.raises(ConfigError, match="line 1: a record has no field 'question_content'"):
        load_problems(find("livecodebench"), file)
    prompts = tmp_path / "test6.jsonl"
    row = {"question_id": "abc", "question_content": "?", "contest_date": "2025-01-04"}
    prompts.write_text(
        "".join(json.dumps(row | {"question_id": str(i)}) + "\n" for i in range(175))
    )
    with pytest.raises(ConfigError, match="line 1: a record has no field 'public_test_cases'"):
        load_problems(find("livecodebench"), prompts)


@pytest.mark.parametrize("bad", ["[1, 2", "[__import__('os').getpid()]", "{'A': 1}", "(" * 5000])
def test_options_are_read_as_a_list_and_never_run(bad: str) -> None:
    assert options({"options": "['a', 3]"}) == options({"options": ["a", "3"]}) == ["a", "3"]
    with pytest.raises(ConfigError, match="options are no list"):
        options({"options": bad})


@pytest.mark.parametrize(
    ("name", "file"),
    [("math500", "math500/test.jsonl"), ("humaneval", "humaneval/example_problem.jsonl")],
)
def test_a_cut_file_is_refused(benchmarks_dir: Path, tmp_path: Path, name: str, file: str) -> None:
    lines = (benchmarks_dir / file).read_text(encoding="utf-8").splitlines(keepends=True)
    cut = tmp_path / Path(file).name
    cut.write_text("".join(lines[:-1] or lines), encoding="utf-8")
    whole = find(name).items[0]
    with pytest.raises(ConfigError, match=rf"holds (499|1) items; {name} has {whole}"):
        load_problems(find(name), cut)


def test_one_category_of_bfcl_is_a_subset_and_a_cut_one_is_refused(
    benchmarks_dir: Path, tmp_path: Path
) -> None:
    file = benchmarks_dir / "bfcl_v4/BFCL_v4_live_parallel.json"
    problems = load_problems(find("bfcl"), file)
    assert len(problems.problems) == 16
    assert problems.origin == f"{file} (16 items; the main set has 3641)"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "possible_answer").mkdir()
    (tmp_path / file.name).write_text("".join(lines[1:]), encoding="utf-8")
    (tmp_path / "possible_answer" / file.name).write_text(
        (file.parent / "possible_answer" / file.name).read_text(encoding="utf-8")
    )
    with pytest.raises(ConfigError, match="15 items of BFCL category 'live_parallel'; published"):
        load_problems(find("bfcl"), tmp_path)


# With graders and metrics


def test_metrics_are_those_that_the_definition_names(loaded: dict[str, Problems]) -> None:
    right = Verdict(True, "x", "ok")
    for name in HERE:
        benchmark = find(name)
        if benchmark.tally is None:
            assert benchmark.metric == "avg@k" and not benchmark.composites
            continue
        clusters: dict[str, list[Graded]] = {}
        for problem in loaded[name].problems:
            clusters.setdefault(problem.cluster, []).append(Graded(problem, [right, right]))
        tallies = [benchmark.tally(graded) for graded in clusters.values()]
        metrics = {metric for tally in tallies for metric in tally}
        assert metrics, name
        assert benchmark.metric in {"avg@k", *metrics, *benchmark.composites}
        if name != "bfcl":  # the shared files lack categories
            assert {part for parts in benchmark.composites.values() for part in parts} <= metrics


def test_attempts_that_are_all_right_are_what_tau_bench_counts(
    loaded: dict[str, Problems],
) -> None:
    problem = loaded["tau2_mock"].problems[0]
    verdicts = [
        Verdict(right, "", "ok" if right else "wrong") for right in (True, True, True, False)
    ]
    tally = find("tau2_mock").tally
    assert tally is not None
    # C(3, k) / C(4, k)
    assert tally([Graded(problem, verdicts)]) == {
        "pass^1": (0.75, 1.0),
        "pass^2": (0.5, 1.0),
        "pass^3": (0.25, 1.0),
        "pass^4": (0.0, 1.0),
    }


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("aime25", r"So it is $\boxed{{{gold}}}$."),
        ("amc23_python", "```python\nprint(1)\n```\n```output\n1\n```\nIt is \\boxed{{{gold}}}."),
        ("math500", r"So it is $\boxed{{{gold}}}$."),
        ("minerva_ocw", r"So it is $\boxed{{{gold}}}$."),
        ("gsm8k", r"So it is $\boxed{{{gold}}}$."),
        ("mathvista", "The answer is {gold}"),
        ("mathvision_mini", r"\boxed{{{gold}}}"),
        ("mathverse", "The angles add up.\n\nAnswer: {gold}"),
        ("wemath", "<Thought process>: <<add>> <Answer>: <<{gold}>>"),
        ("dynamath", '{{"solution": "Add.", "short answer": "{gold}"}}'),
        ("hallusionbench", "{gold}."),
        ("logicvista", r"So \boxed{{{gold}}}"),
        ("mmmu", "{gold}"),
    ],
)
def test_the_right_answer_in_the_form_that_is_asked_for_is_right(
    loaded: dict[str, Problems], name: str, form: str
) -> None:
    problems = [problem for problem in loaded[name].problems if problem.gold][:40]
    pairs = [(form.format(gold=problem.gold), problem.row) for problem in problems]
    wrong = [
        (problem.id, response)
        for problem, (response, _), verdict in zip(
            problems, pairs, grade_many(name, pairs), strict=True
        )
        if not verdict.correct
    ]
    assert wrong == []


# The list


def test_the_catalogue_knows_where_everything_is(
    benchmarks_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = time.perf_counter()
    entries = {entry.name: entry for entry in catalogue([benchmarks_dir])}
    assert time.perf_counter() - started < 2.0
    assert set(entries) == set(BENCHMARKS)
    for name in HERE:
        assert Path(entries[name].found).is_relative_to(benchmarks_dir.absolute())
        assert entries[name].rules == GRADERS[find(name).grader].rules
    assert {name: entries[name].found for name in ELSEWHERE} == {
        "math": "hub",
        "mathvision": "hub",
        "livecodebench": "hub",
        **dict.fromkeys(MICRO, "absent"),
    }
    assert entries["aime25"].samples == 32 and entries["gsm8k"].samples == 1
    monkeypatch.setenv("REOPOLD_BENCHMARKS", str(tmp_path))
    assert {entry.found for entry in catalogue()} == {"hub", "absent"}
