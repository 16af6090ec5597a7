"""The written report: complete, self-contained, the same bytes every time, honest about gaps."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
from synthetic import Synthetic, write_manifest

from evals.report import build_report, compare
from evals.report.build import finite
from evals.report.provenance import public
from evals.report.styles import STYLES
from evals.report.tokens import clean, token_view
from reopold.config import ConfigError, Method

Make = Callable[[Synthetic], Path]
FILES = (
    *("index.html", "report.md", "report.json", "scores.csv", "curves.csv", "budgets.csv"),
    "microscope.html",
    *("MANIFEST.json", "evidence.zip"),
)
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Every start tag, and whether tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(finished_study: Path) -> Page:
    return Page(build_report(finished_study).read_text(encoding="utf-8"))


def test_all_files_are_written(finished_study: Path) -> None:
    index = build_report(finished_study)
    assert index == finished_study / "report" / "index.html"
    assert {file.name for file in index.parent.iterdir()} == {*FILES, "figures"}
    drawn = {file.name for file in (index.parent / "figures").iterdir()}
    assert "curves-micro_maths.svg" in drawn and len(drawn) == 12
    assert "var(--" not in (index.parent / "figures/curves-micro_maths.svg").read_text()


def test_two_processes_write_the_same_bytes(finished_study: Path) -> None:
    code = "import sys, pathlib; from evals.report import build_report as b"
    command = [sys.executable, "-c", f"{code}; b(pathlib.Path(sys.argv[1]))", str(finished_study)]
    written = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "TZ": f"UTC+{hash_seed}"}
        subprocess.run(command, check=True, env=environment)
        written.append({name: (finished_study / "report" / name).read_bytes() for name in FILES})
    build_report(finished_study)
    written.append({name: (finished_study / "report" / name).read_bytes() for name in FILES})
    assert written[0] == written[1] == written[2]


def test_a_study_that_moved_gives_the_same_bytes(make_study: Make, tmp_path: Path) -> None:
    folder = make_study(Synthetic(methods=("opd", "grpo"), seeds=(1,)))
    build_report(folder)
    before = {name: (folder / "report" / name).read_bytes() for name in FILES}
    shutil.rmtree(folder / "report")
    moved = folder.rename(tmp_path / "elsewhere")
    build_report(moved)
    assert before == {name: (moved / "report" / name).read_bytes() for name in FILES}


def test_the_page_needs_nothing_from_elsewhere(page: Page) -> None:
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    targets = [value for _, attrs in page.tags for key, value in attrs.items() if key == "href"]
    assert {target for target in targets if target and not target.startswith("#")} <= set(FILES)


def test_figures_and_tables_can_be_told_apart_by_a_screen_reader(page: Page) -> None:
    identifiers = Counter(attrs["id"] for _, attrs in page.tags if "id" in attrs)
    assert [name for name, count in identifiers.items() if count > 1] == []
    figures = [attrs for tag, attrs in page.tags if tag == "svg" and "swatch" not in str(attrs)]
    assert len(figures) == 12
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in figures)
    assert all(attrs["scope"] in ("col", "row") for tag, attrs in page.tags if tag == "th")
    for _, attrs in page.tags:
        for name in ("aria-labelledby", "aria-describedby", "xlink:href"):
            if name in attrs:
                assert str(attrs[name]).removeprefix("#") in identifiers


def test_figures_take_their_colours_from_the_page(finished_study: Path) -> None:
    text = build_report(finished_study).read_text(encoding="utf-8")
    figures = re.findall(r'<svg role="img".*?</svg>', text, flags=re.DOTALL)
    colours = {colour for figure in figures for colour in re.findall(r"#[0-9a-f]{6}\b", figure)}
    assert colours <= {"#000000"}  # matplotlib's own invisible definitions
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    assert used <= set(re.findall(r"(--[\w-]+):", text))


def test_nothing_private_is_shown(make_study: Make) -> None:
    what = Synthetic(methods=("grpo",), seeds=(1,))
    folder = make_study(what)
    run = folder / "runs/grpo-s1"
    manifest = json.loads((run / "manifest.json").read_text())
    manifest |= {"status": "failed", "message": "cannot read /home/someone/data/train.jsonl: no"}
    manifest["hardware"] |= {"hostname": "secret-host"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    build_report(folder)
    # The evidence is the study's own files, byte for byte: docs/study.md says so.
    shown = {f for f in (folder / "report").rglob("*") if f.suffix not in ("", ".zip")}
    for name in shown:
        text = name.read_text()
        for private in ("someone", "secret-host", "/data/", "/models/", str(folder), "1000000000"):
            assert private not in text, (name, private)
    assert "cannot read train.jsonl" in (folder / "report/index.html").read_text()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/a/b/c.jsonl", "c.jsonl"),
        ("open '/tmp/x y'", "open 'x y'"),
        ("1/2 of org/model", "1/2 of org/model"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("~/runs/one: no", "one: no"),
        (r"C:\work\one", "one"),
    ],
)
def test_paths_are_cut_and_fractions_are_not(text: str, shown: str) -> None:
    assert public(text) == shown


def test_markdown_tables_are_rectangular(finished_study: Path) -> None:
    build_report(finished_study)
    lines = (finished_study / "report/report.md").read_text(encoding="utf-8").splitlines()
    blocks = "\n".join(line if line.startswith("|") else "" for line in lines).split("\n\n")
    tables = [block.strip().splitlines() for block in blocks if block.strip()]
    assert len(tables) == 5
    for table in tables:
        assert len(table) > 2
        assert len({line.count("|") for line in table}) == 1


def test_json_holds_what_the_table_shows(finished_study: Path) -> None:
    build_report(finished_study)
    summary = json.loads((finished_study / "report/report.json").read_text())
    (benchmark,) = summary["benchmarks"]
    shown = compare(finished_study)
    assert shown.summary["benchmarks"] == [benchmark]
    for row, (_, line) in zip(benchmark["methods"], shown.parts[0].table.iterrows(), strict=True):
        assert line["method"] == row["method"]
        assert line["avg@4"].startswith(f"{100 * row['score']['value']:.1f} (")
    assert {run["run"] for run in summary["runs"]} >= {"student", "teacher", "grpo-s3"}


def test_json_has_no_nan_and_no_noise() -> None:
    value = {"a": [0.1 + 0.2, float("nan"), (float("-inf"), 3)], "b": "nan"}
    assert finite(value) == {"a": [0.3, None, [None, 3]], "b": "nan"}


def test_an_unknown_wall_clock_is_no_number(make_study: Make) -> None:
    folder = make_study(Synthetic(methods=("grpo",), seeds=(1,)))
    file = folder / "runs/grpo-s1/manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": float("nan")}))
    build_report(folder)
    runs = json.loads((folder / "report/report.json").read_text())["runs"]
    assert [run["seconds"] for run in runs if run["run"] == "grpo-s1"] == [None]


def test_a_folder_without_study_json_is_refused(tmp_path: Path) -> None:
    for action in (build_report, compare):
        with pytest.raises(ConfigError, match=r"holds no study\.json"):
            action(tmp_path)
        with pytest.raises(ConfigError, match=r"holds no study\.json"):
            action(tmp_path / "absent")
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        build_report(tmp_path)


def test_a_study_that_has_not_begun_renders(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(Synthetic().study().model_dump_json())
    text = Page(build_report(tmp_path).read_text()).text
    assert "Nothing has been evaluated on micro_maths yet" in text
    assert "There is no teacher run." in text
    assert len(pd.read_csv(tmp_path / "report/scores.csv")) == 0
    assert compare(tmp_path).parts[0].table.empty


def test_missing_pieces_are_told_in_words(make_study: Make) -> None:
    what = Synthetic(seeds=(1, 2))
    folder = make_study(what)
    shutil.rmtree(folder / "runs/opd-s1")
    shutil.rmtree(folder / "runs/reopold-s2/eval")
    shutil.rmtree(folder / "runs/grpo-s2/eval/step-000012")
    write_manifest(folder / "runs/grpo-s2", what.run("grpo-s2", "grpo", 2), "stopped", 9)
    (folder / "runs/grpo-s1/eval/step-000004/micro_maths/samples.parquet").unlink()
    text = Page(build_report(folder).read_text()).text
    for words in (
        "opd has no run for seed 1.",
        "Run reopold-s2 has no evaluation on micro_maths yet.",
        "The last evaluation of grpo-s2 is at step 8 of 12.",
        "Run grpo-s2 is not finished: stopped, 9 of 12 steps.",
        "The samples.parquet of run grpo-s1, step 4, micro_maths cannot be read",
        "1 and 2 seeds a method",
        "With a single seed",
    ):
        assert words in text, words


def test_damaged_files_leave_the_rest_standing(make_study: Make) -> None:
    folder = make_study(Synthetic(methods=("opd", "grpo"), seeds=(1,)))
    (folder / "runs/opd-s1/config.json").write_text("{}")
    (folder / "runs/grpo-s1/metrics.jsonl").write_text("no json\n{}\n")
    (folder / "runs/grpo-s1/eval/step-000012/micro_maths/results.json").write_text("{}")
    (folder / "runs/teacher/eval/step-000012/micro_maths/samples.parquet").write_text("torn")
    text = Page(build_report(folder).read_text()).text
    assert "Run opd-s1 is left out" in text
    assert "The metrics.jsonl of run grpo-s1 is damaged" in text
    assert "The results.json of run grpo-s1, step 12, micro_maths cannot be read" in text
    assert "The samples.parquet of run teacher, step 12" in text


def test_a_baseline_that_learnt_nothing_is_called_out(make_study: Make) -> None:
    folder = make_study(Synthetic(methods=("opd", "grpo"), seeds=(1,)))
    source = folder / "runs/student/eval/step-000012"
    for step in (4, 8, 12):
        target = folder / f"runs/grpo-s1/eval/step-{step:06d}"
        shutil.rmtree(target)
        shutil.copytree(source, target)
    reading = " ".join(compare(folder).parts[0].reading)
    assert "The baseline grpo did not measurably improve over the student (0.0 points" in reading
    assert "grpo ends at" in reading
    assert "is undecided (0.0 points" in reading


def test_a_target_never_reached_is_a_bound(make_study: Make) -> None:
    folder = make_study(Synthetic(methods=("opd", "grpo"), seeds=(1,)))
    for name in ("opd-s1", "grpo-s1"):
        (folder / f"runs/{name}/eval").rename(folder / f"{name}-eval")
    (folder / "opd-s1-eval").rename(folder / "runs/grpo-s1/eval")
    (folder / "grpo-s1-eval").rename(folder / "runs/opd-s1/eval")
    shown = compare(folder)
    column = "samples, against grpo"
    opd = shown.parts[0].table.set_index("method").loc["opd", column]
    assert opd == "< 1.0×, not reached in 384 samples"
    assert "< 1.0×, not reached in 384 samples" in " ".join(shown.parts[0].reading)


def test_tokens_are_escaped_and_coloured(make_study: Make) -> None:
    folder = make_study(Synthetic(methods=("reopold",), seeds=(1,)))
    file = folder / "runs/reopold-s1/rollouts/step-000012.jsonl"
    token = {"teacher_logprob": -0.5, "student_logprob": -2.0, "entropy": 1.0, "kept": True}
    texts = ["</span><script>alert(1)</script>", "\ud83d", "\x00", "\n"]
    record = {
        "prompt": "<b>1</b>",
        "response": "",
        "answer": "2",
        "reward": 1.0,
        "finish_reason": "length",
        "tokens": [{**token, "text": text} for text in texts],
    }
    file.write_text(json.dumps(record) + "\n")
    html = build_report(folder).read_text(encoding="utf-8")
    assert "<script>" not in html
    assert "<b>" not in html
    assert "truncated" in html
    assert html.count(">+1.5<") + html.count("<small>+1.5</small>") >= 4


def test_a_rollout_without_a_teacher_is_no_section(make_study: Make) -> None:
    folder = make_study(Synthetic(methods=("reopold",), seeds=(1,)))
    shutil.rmtree(folder / "runs/reopold-s1/rollouts")
    assert "<h2>Rollouts</h2>" not in build_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("teacher", "student", "sign", "strength", "label"),
    [
        (-1.0, -1.0, "none", 0, ""),
        (-0.5, -2.0, "up", 50, "+1.5"),
        (-9.0, -1.0, "down", 100, "−8.0"),
        (float("-inf"), -1.0, "down", 100, "−inf"),
        (float("-inf"), float("-inf"), "none", 0, ""),
    ],
)
def test_a_token_shows_its_reward(
    teacher: float, student: float, sign: str, strength: int, label: str
) -> None:
    shown = token_view(
        {"text": "a", "teacher_logprob": teacher, "student_logprob": student, "kept": False}
    )
    assert (shown.sign, shown.strength, shown.label) == (sign, strength, label)
    assert not shown.kept


def test_unprintable_text_can_be_written() -> None:
    assert clean("a\ud800\x07b\n") == "a?�b\n"


def test_published_numbers_are_shown_as_others(make_study: Make) -> None:
    folder = make_study(Synthetic(methods=("grpo",), seeds=(1,)))
    file = folder / "study.json"
    study = json.loads(file.read_text()) | {"published": ["aime25"]}
    file.write_text(json.dumps(study))
    html = build_report(folder).read_text(encoding="utf-8")
    assert "30.83" in html and "not reproduced here: needs GPU and weights" in html
    assert "Not the REOPOLD paper&#39;s own number" in html
    scores = (folder / "report/scores.csv").read_text()
    assert "30.83" not in scores and "aime25" not in scores


def test_every_method_has_a_look_of_its_own() -> None:
    assert set(STYLES) == set(get_args(Method))
    assert len({(style.dashes, style.marker) for style in STYLES.values()}) == len(STYLES)
    assert len({style.color for style in STYLES.values()}) == len(STYLES)
