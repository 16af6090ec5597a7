"""Studies of several families: a section each, pictures, dialogues, test-time scaling."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import Synthetic, dialogue_record, write_study

from evals.report import build_report, compare
from evals.report.families import dialogue_table, kind_table
from evals.report.pictures import SMALL_BYTES, picture
from evals.report.scaling import scaling
from evals.report.study import Study, load_study
from evals.report.tables import Table
from evals.scaling import majority_at_k

Make = Callable[[Synthetic], Path]
BENCHMARKS = ("micro_visual", "micro_tools")
K = 8


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    what = Synthetic(benchmarks=BENCHMARKS, seeds=(1, 2), questions=24, every=6, scaling=K)
    return write_study(tmp_path_factory.mktemp("studies") / "mixed", what)


@pytest.fixture(scope="module")
def html(mixed: Path) -> str:
    return build_report(mixed).read_text(encoding="utf-8")


def cells(table: Table | None) -> dict[str, list[str]]:
    assert table is not None
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def samples(study: Path, run: str, benchmark: str) -> pd.DataFrame:
    return pd.read_parquet(study / "runs" / run / f"eval/step-000012/{benchmark}/samples.parquet")


def test_every_benchmark_has_its_section(mixed: Path, html: str) -> None:
    headings = re.findall(r"<h2>(micro_\w+) <small>(\w+)</small></h2>", html)
    assert headings == [("micro_visual", "visual"), ("micro_tools", "tools")]
    for benchmark in BENCHMARKS:
        for name in ("final", "efficiency", "seeds", "scaling"):
            assert f'id="{name}-{benchmark}"' in html
        assert f"Score on {benchmark} against samples." in html
    assert html.count("reopold is above grpo") + html.count("reopold against grpo") == 2
    assert "visual: outcome reward" in html and "tools: outcome reward" in html
    assert "tool calls a dialogue" in html and "maths" not in html.split("<main>")[1]


def test_scores_name_the_family_of_their_benchmark(mixed: Path, html: str) -> None:
    with (mixed / "report/scores.csv").open(encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert {(row["benchmark"], row["family"]) for row in rows} == {
        ("micro_visual", "visual"),
        ("micro_tools", "tools"),
    }
    assert {row["metric"] for row in rows if row["family"] == "tools"} == {
        "avg@k", "pass@k", "maj@k",
    }  # fmt: skip
    assert {"text_dominant", "vision_only"} <= {row["metric"] for row in rows}
    curves = pd.read_csv(mixed / "report/curves.csv")
    families = set(zip(curves["benchmark"], curves["family"], strict=True))
    assert families == {("micro_visual", "visual"), ("micro_tools", "tools")}


def test_the_terminal_sees_every_benchmark(mixed: Path) -> None:
    found = compare(mixed)
    assert [part.benchmark for part in found.parts] == list(BENCHMARKS)
    for part in found.parts:
        assert list(part.table["method"]) == ["student", "reopold", "opd", "grpo", "teacher"]
        assert any("With one sample" in text or "with one sample" in text for text in part.reading)
    assert [each["benchmark"] for each in found.summary["benchmarks"]] == list(BENCHMARKS)


def test_a_missing_benchmark_is_told(make_study: Make) -> None:
    folder = make_study(
        Synthetic(benchmarks=BENCHMARKS, methods=("grpo",), seeds=(1,), questions=12)
    )
    shutil.rmtree(folder / "runs/grpo-s1/eval/step-000012/micro_tools")
    shutil.rmtree(folder / "runs/teacher/eval/step-000012/micro_tools")
    notes = compare(folder).notes
    assert "Run teacher has no evaluation on micro_tools yet." in notes
    assert "The last evaluation of grpo-s1 on micro_tools is at step 8 of 12." in notes


def test_versions_are_means_over_seeds(mixed: Path) -> None:
    shown = cells(kind_table(load_study(mixed), "micro_visual"))
    frames = [samples(mixed, f"reopold-s{seed}", "micro_visual") for seed in (1, 2)]
    for column, rest in ((0, 0), (1, 1)):
        values = [
            frame[frame["question_id"].str[1:].astype(int) % 2 == rest]["correct"].mean()
            for frame in frames
        ]
        assert shown["reopold"][column] == f"{100 * np.mean(values):.1f}"
    assert kind_table(load_study(mixed), "micro_tools") is None


def test_use_of_tools_by_hand(mixed: Path) -> None:
    shown = cells(dialogue_table(load_study(mixed), "micro_tools"))
    # Of four samples each, one calls twice (once in vain) and runs out of turns.
    assert shown["opd"] == ["1.25", "20.0", "0.0", "25.0", "0.0", "0.0"]
    assert dialogue_table(load_study(mixed), "micro_visual") is None


def test_dialogues_and_pictures_can_be_read(mixed: Path, html: str) -> None:
    assert "<strong>calculator</strong> <span>result: 408</span>" in html
    dialogue = html[html.index("12 times 34?") :].split("</article>")[0]
    assert dialogue.count('<p class="tokens">') == 2 and "· 1 call" in dialogue
    assert "&lt;tool_call&gt;" in dialogue and "&lt;image&gt;" not in html
    file = (mixed / "micro/micro_visual/images/q0001.png").read_bytes()
    data = f"data:image/png;base64,{base64.b64encode(file).decode()}"
    prompt = html[html.index("add the digits") - 2000 : html.index("add the digits")]
    assert f'<img src="{data}" alt="Picture 1 of the prompt">' in prompt
    assert html.count("Picture 1 of question") == 6
    assert set(re.findall(r'<img src="([^"]{5})', html)) == {"data:"}


def test_broken_and_unscored_dialogues_are_not_shown(make_study: Make) -> None:
    folder = make_study(Synthetic(methods=("reopold",), seeds=(1,), questions=12))
    file = folder / "runs/reopold-s1/rollouts/step-000012.jsonl"
    broken = dialogue_record() | {"error": "the tool broke", "prompt": "broken one"}
    silent = dialogue_record() | {"prompt": "all observed"}
    for token in silent["tokens"]:  # type: ignore[attr-defined]
        token["observed"] = True
    plain = {"prompt": "p", "response": "", "answer": "1", "reward": 0.0, "finish_reason": "stop"}
    lines = [plain | each for each in (broken, silent, dialogue_record())]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = build_report(folder).read_text(encoding="utf-8")
    assert "12 times 34?" in html and "broken one" not in html and "all observed" not in html


def test_pictures_are_small_or_left_out(mixed: Path, tmp_path: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (400, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no picture")
    assert (tmp_path / "large.png").stat().st_size > SMALL_BYTES
    study = Study(load_study(mixed).config, {}, [], [], tmp_path)
    shown = picture(study, str(tmp_path / "large.png"))
    assert shown is not None
    data = base64.b64decode(shown.removeprefix("data:image/png;base64,"))
    (tmp_path / "small.png").write_bytes(data)
    assert Image.open(tmp_path / "small.png").size == (192, 256)
    assert picture(study, str(tmp_path / "text.png")) is None
    assert picture(study, str(tmp_path / "absent.png")) is None


def test_scaling_curves_are_the_files_votes(mixed: Path) -> None:
    found = scaling(load_study(mixed), "micro_tools")
    assert found is not None
    assert [row.method for row in found.rows] == ["student", "reopold", "opd", "teacher"]
    assert (found.n, found.k) == (24, K)
    row = found.row("reopold")
    assert row is not None and row.seeds == [1, 2]
    for point in row.points:
        values = []
        for seed in (1, 2):
            file = mixed / f"scaling/reopold-s{seed}/micro_tools/samples.parquet"
            for _, rows in pd.read_parquet(file).groupby("question_id"):
                values.append(majority_at_k(rows["vote"].to_list(), "right", point.k))
        assert point.maj.value == pytest.approx(np.mean(values))
        assert point.maj.low <= point.maj.value <= point.maj.high
        # 4 tokens of a prompt, 20 of a response with what its tool said.
        assert point.tokens == pytest.approx(4 + 20 * point.k)
        assert point.flops == pytest.approx(2 * 1000 * (4 + 20 * point.k))
        assert point.seconds == pytest.approx(0.01 * point.k)


def test_speed_ups_by_hand(mixed: Path) -> None:
    found = scaling(load_study(mixed), "micro_visual")
    assert found is not None and list(found.speed_ups) == ["student", "reopold", "opd"]
    taught = found.speed_ups["reopold"]
    teacher = found.row("teacher")
    assert teacher is not None and taught.target == pytest.approx(teacher.points[0].maj.value)
    assert taught.k is not None and 1.0 < taught.k < K
    assert taught.seconds.value == pytest.approx(0.03 / (0.01 * taught.k))
    assert taught.tokens.value == pytest.approx((4 + 12) / (4 + 12 * taught.k))
    assert taught.flops.value == pytest.approx(10 * (4 + 12) / (4 + 12 * taught.k))
    assert found.speed_ups["student"].k is None


def test_the_page_says_how_far_votes_go(mixed: Path, html: str) -> None:
    found = scaling(load_study(mixed), "micro_visual")
    assert found is not None
    taught = found.speed_ups["reopold"]
    assert f"It reaches the teacher&#39;s score at k = {taught.k:.1f} (" in html
    assert f"the student before: {100 * found.speed_ups['student'].start:.1f}" in html
    assert f"does not reach the teacher&#39;s score by k = {K}" in html
    assert f"not reached by {K}" in html
    summary = json.loads((mixed / "report/report.json").read_text())
    (first, _) = summary["benchmarks"]
    kept = first["scaling"]["speed_ups"]["reopold"]
    assert kept["k"] == pytest.approx(taught.k, abs=1e-5)
    table = pd.read_csv(mixed / "report/scaling.csv")
    one = table[(table["benchmark"] == "micro_visual") & (table["method"] == "opd")]
    assert sorted(set(one["k"])) == [1, 2, 4, 8] and set(one["seeds"]) == {2}
    assert '<a href="scaling.csv">' in html


def test_scaling_that_does_not_fit_is_left_out(make_study: Make) -> None:
    what = Synthetic(methods=("opd", "grpo"), seeds=(1, 2), questions=12, scaling=4)
    folder = make_study(what)
    shutil.rmtree(folder / "scaling/opd-s2")
    file = folder / "scaling/teacher/micro_maths/results.json"
    file.write_text(file.read_text().replace(f"{12:064x}", "f" * 64))
    (folder / "scaling/student/micro_maths/samples.parquet").write_text("torn")
    found = scaling(load_study(folder), "micro_maths")
    assert found is not None
    assert [row.method for row in found.rows] == ["opd"] and found.speed_ups == {}
    assert found.notes == [
        "Left out: the scaling experiment of student on micro_maths cannot be read.",
        "There is no result of the scaling experiment of opd-s2 on micro_maths yet.",
        "Left out: the scaling experiment of teacher on micro_maths is of another checkpoint than "
        "the evaluation.",
    ]
    html = build_report(folder).read_text(encoding="utf-8")
    assert "The teacher was not sampled" in html
    shutil.rmtree(folder / "scaling")
    assert "scaling.csv" not in build_report(folder).read_text(encoding="utf-8")
    assert not (folder / "report/scaling.csv").exists()


def test_a_mixed_study_that_moved_gives_the_same_bytes(
    mixed: Path, html: str, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(mixed, tmp_path / "elsewhere"))
    shutil.rmtree(moved / "report")
    build_report(moved)
    for file in (p for p in (mixed / "report").rglob("*") if p.is_file()):
        assert file.read_bytes() == (moved / file.relative_to(mixed)).read_bytes(), file.name
