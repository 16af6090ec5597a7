"""A report that checks itself: what is edited is found, and named."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from synthetic import Synthetic

from evals.benchmarks import find
from evals.benchmarks.base import Graded
from evals.benchmarks.problems import load_problems
from evals.evaluation import SampleRow
from evals.grading import grade_many
from evals.report import build_report
from evals.report.evidence import EVIDENCE, MANIFEST
from evals.report.verify import Checked, verify_report
from evals.results import SAMPLES_FILE, read_results, write_results
from evals.scores import score, votes
from reopold.config import ConfigError

Make = Callable[..., Path]
METRICS, CONFIG = "runs/grpo-s1/metrics.jsonl", "runs/opd-s1/config.json"
SAMPLES = "runs/opd-s1/eval/step-000012/micro_maths/samples.parquet"


@pytest.fixture
def study(make_study: Make) -> Path:
    """A study whose samples can be graded: problems, and responses that the grader reads."""
    folder = make_study(Synthetic(methods=("opd", "grpo"), seeds=(1,), questions=12))
    problems = folder / "micro/micro_maths/test.jsonl"
    problems.parent.mkdir(parents=True)
    lines = [
        {
            "id": f"q{q:04d}",
            "prompt": [{"role": "user", "content": f"{q} + 1 ="}],
            "answer": str(q + 1),
        }
        for q in range(12)
    ]
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for results_file in folder.glob("runs/*/eval/*/*/results.json"):
        _regradable(results_file.parent, folder / "micro")
    build_report(folder)
    return folder


def _regradable(place: Path, data: Path) -> None:
    results, benchmark = read_results(place), find("micro_maths")
    assert results is not None
    problems = load_problems(benchmark, data)
    rows = pd.read_parquet(place / SAMPLES_FILE).to_dict("records")
    by_id = {problem.id: problem for problem in problems.problems}
    for row in rows:
        row |= {"response": f"#{row['extracted']}", "images": [], "answer": None}
        row["response_ids"] = [1] * 12
    pairs = [(row["response"], by_id[row["question_id"]].row) for row in rows]
    verdicts = grade_many("micro_maths", pairs)
    for row, verdict in zip(rows, verdicts, strict=True):
        assert row["correct"] == verdict.correct
        row |= {"extracted": verdict.extracted, "status": verdict.status}
    k = results.k
    graded = [
        Graded(by_id[rows[i]["question_id"]], verdicts[i : i + k]) for i in range(0, len(rows), k)
    ]
    scores = score(benchmark, graded, [votes(benchmark, each.verdicts) for each in graded])
    dataset = results.dataset.model_copy(update={"digest": problems.digest, "limit": 0})
    write_results(
        place,
        results.model_copy(update={"scores": scores, "dataset": dataset}),
        [SampleRow(**row) for row in rows],
    )


def failed(found: list[Checked]) -> list[tuple[str, str]]:
    return [(each.check, each.where) for each in found if each.verdict == "fail"]


def silent(text: str) -> None:
    pass


def edited(report: Path, name: str, change: Callable[[bytes], bytes], *, cover: bool) -> None:
    """Change a file in the archive; `cover` mends its digest in the manifest, as a forger would."""
    archive, changed = report / EVIDENCE, b""
    with zipfile.ZipFile(archive) as old:
        contents = {entry: old.read(entry) for entry in old.namelist()}
    changed = contents[name] = change(contents[name])
    with zipfile.ZipFile(archive, "w") as new:
        for entry, content in contents.items():
            new.writestr(entry, content)
    if cover:
        manifest = json.loads((report / MANIFEST).read_text())
        manifest["evidence"][name] = hashlib.sha256(changed).hexdigest()
        (report / MANIFEST).write_text(json.dumps(manifest))


def test_a_report_as_it_was_written_passes_every_check(study: Path) -> None:
    found = verify_report(study / "report", tell=silent)
    assert failed(found) == []
    assert [each.check for each in found] == ["files", "evidence", "study", "samples", "report"]
    assert "graded and scored the same again" in found[3].found


def test_a_stranger_needs_the_folder_alone(study: Path, tmp_path: Path) -> None:
    alone = (study / "report").rename(tmp_path / "sent")
    found = verify_report(alone, tell=silent)
    assert failed(found) == []
    assert [each.check for each in found] == ["files", "evidence", "samples", "report"]


@pytest.mark.parametrize("name", [METRICS, CONFIG, SAMPLES])
def test_an_edited_run_is_named(study: Path, name: str) -> None:
    file = study / name
    file.write_bytes(file.read_bytes()[:-2] + b"  ")
    assert failed(verify_report(study / "report", tell=silent)) == [("study", name)]
    file.unlink()
    assert failed(verify_report(study / "report", tell=silent)) == [("study", name)]


def test_an_edited_page_is_named(study: Path) -> None:
    index = study / "report/index.html"
    index.write_text(index.read_text().replace("grpo", "GRPO", 1))
    (study / "report/more.txt").write_text("not ours")
    found = failed(verify_report(study / "report", tell=silent))
    assert found == [("files", "index.html"), ("files", "more.txt")]


@pytest.mark.parametrize("name", [METRICS, CONFIG, SAMPLES])
def test_edited_evidence_is_named(study: Path, tmp_path: Path, name: str) -> None:
    report = (study / "report").rename(tmp_path / "sent")
    edited(report, name, lambda content: content + b"\n", cover=False)
    assert ("evidence", name) in failed(verify_report(report, tell=silent))


def test_a_forged_metric_draws_another_page(study: Path, tmp_path: Path) -> None:
    report = (study / "report").rename(tmp_path / "sent")

    def better(content: bytes) -> bytes:
        lines = [json.loads(line) for line in content.splitlines()]
        lines[-1]["rollout/reward"] = 0.99
        return "".join(json.dumps(line) + "\n" for line in lines).encode()

    edited(report, METRICS, better, cover=True)
    found = failed(verify_report(report, tell=silent))
    assert ("report", "index.html") in found and {check for check, _ in found} == {"report"}


@pytest.mark.parametrize("forged", ["correct", "response"])
def test_a_forged_sample_is_graded_again(study: Path, tmp_path: Path, forged: str) -> None:
    """A wrong sample passed off as right, and a right answer put into a wrong sample's mouth."""
    report = (study / "report").rename(tmp_path / "sent")
    where, rows = tmp_path / "samples.parquet", []

    def better(content: bytes) -> bytes:
        where.write_bytes(content)
        samples = pd.read_parquet(where)
        wrong = samples.index[~samples["correct"]][0]
        rows.append(samples.loc[wrong])
        if forged == "correct":
            samples.loc[wrong, "correct"] = True
        else:
            samples.loc[wrong, "response"] = f"#{samples.loc[wrong, 'gold']}"
        samples.to_parquet(where)
        return where.read_bytes()

    edited(report, SAMPLES, better, cover=True)
    found = failed(verify_report(report, tell=silent))
    (row,) = rows
    place = SAMPLES.removesuffix("/samples.parquet")
    named = f"{place}: question {row['question_id']}, sample {row['sample']}"
    assert ("samples", named) in found


def test_a_forged_score_is_counted_again(study: Path, tmp_path: Path) -> None:
    report = (study / "report").rename(tmp_path / "sent")
    name = SAMPLES.replace(SAMPLES_FILE, "results.json")

    def better(content: bytes) -> bytes:
        results = json.loads(content)
        results["scores"][0]["value"] += 0.01
        return json.dumps(results).encode()

    edited(report, name, better, cover=True)
    assert ("samples", f"{SAMPLES.removesuffix('/samples.parquet')}: avg@4") in failed(
        verify_report(report, tell=silent)
    )


def test_without_evidence_it_says_so(study: Path, tmp_path: Path) -> None:
    report = (study / "report").rename(tmp_path / "sent")
    (report / EVIDENCE).unlink()
    found = verify_report(report, tell=silent)
    assert failed(found) == [] and found[-1].verdict == "skip" and "--study" in found[-1].found
    whole = verify_report(report, study, tell=silent)
    assert failed(whole) == [] and whole[-1].check == "report"


@pytest.mark.parametrize("fault", ["none", "zip", "escape", "schema"])
def test_what_is_no_report_is_refused(study: Path, tmp_path: Path, fault: str) -> None:
    report = study / "report"
    if fault == "none":
        report, message = tmp_path, "holds no MANIFEST.json"
    elif fault == "zip":
        (report / EVIDENCE).write_bytes(b"PK no archive")
        message = "is damaged"
    elif fault == "escape":
        with zipfile.ZipFile(report / EVIDENCE, "w") as archive:
            archive.writestr("../outside.txt", "x")
        message = "leads out of the study"
    else:
        (report / MANIFEST).write_text('{"schema": 99}')
        message = "not of schema 1"
    with pytest.raises(ConfigError, match=message):
        verify_report(report, tell=silent)
    assert not (tmp_path / "outside.txt").exists()
