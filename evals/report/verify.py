"""Checking a report: against itself, its evidence and the study, from the folder alone.

Five checks: the report's files are those of its manifest; the evidence is, too; every stored sample
gets the verdict and every result the scores again that it has; the report renders from the evidence
to the same bytes, so every number in it follows from the evidence; and where the study's folder is
at hand, the evidence is what lies there today.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from evals.benchmarks import find
from evals.benchmarks.base import Graded, Problem
from evals.benchmarks.places import placed
from evals.benchmarks.problems import load_problems
from evals.grading import grade_many
from evals.grading.verdict import BROKEN
from evals.report.build import render
from evals.report.evidence import EVIDENCE, MANIFEST, digest, read_manifest, software, unpack
from evals.report.study import load_study
from evals.results import RESULTS_FILE, SAMPLES_FILE, Results, read_results
from evals.scores import Score, score, votes
from reopold.config import ConfigError

Verdict = Literal["pass", "fail", "skip"]
#: Faults of one check that are named; the rest is counted.
NAMED = 20


@dataclass(frozen=True)
class Checked:
    """What a check found: a line a fault, or one line."""

    check: str
    verdict: Verdict
    where: str
    found: str


Tell = Callable[[str], None]


def verify_report(report: Path, study_dir: Path | None = None, tell: Tell = print) -> list[Checked]:
    """Check a report.

    Args:
        study_dir: the study it was made from; None: the folder above, if that is a study.
        tell: hears what is being checked, since it takes a while.

    Raises:
        ConfigError: `report` is no report, or its evidence cannot be unpacked.
    """
    manifest = read_manifest(report)
    found = list(_files(report, manifest["files"]))
    if study_dir is None and (report.absolute().parent / "study.json").exists():
        study_dir = report.absolute().parent
    with tempfile.TemporaryDirectory(prefix="reopold-verify-") as temporary:
        evidence = Path(temporary) / "study"
        if (report / EVIDENCE).exists():
            tell("evidence: unpacking")
            there = unpack(report, evidence)
            found += _compare("evidence", manifest["evidence"], there, EVIDENCE)
        elif study_dir is None:
            note = f"no {EVIDENCE} here; give the study's folder with --study"
            found.append(Checked("evidence", "skip", str(report), note))
            return found
        else:
            evidence = study_dir
        if study_dir is not None:
            tell(f"study: {study_dir}")
            there = {
                name: digest((study_dir / name).read_bytes())
                for name in manifest["evidence"]
                if (study_dir / name).is_file()
            }
            found += _compare("study", manifest["evidence"], there, str(study_dir))
        found += _regrade_all(evidence, tell)
        tell("report: drawing it again")
        found += _render_again(report, evidence, manifest)
    return found


def _files(report: Path, files: Mapping[str, str]) -> Iterator[Checked]:
    """The report's own files, and strangers among them."""
    own = {file.relative_to(report).as_posix() for file in report.rglob("*") if file.is_file()}
    there = {name: digest((report / name).read_bytes()) for name in own & set(files)}
    yield from _compare("files", files, there, "the report")
    for name in sorted(own - set(files) - {EVIDENCE, MANIFEST}):
        yield Checked("files", "fail", name, "is no file of this report")


def _compare(
    check: str, wanted: Mapping[str, str], there: Mapping[str, str], where: str
) -> list[Checked]:
    wrong = []
    for name in sorted(wanted):
        if name not in there:
            wrong.append(Checked(check, "fail", name, f"is missing from {where}"))
        elif there[name] != wanted[name]:
            said = f"changed: SHA-256 {there[name][:12]}, the manifest has {wanted[name][:12]}"
            wrong.append(Checked(check, "fail", name, said))
    wrong += [
        Checked(check, "fail", name, "is in the evidence and not in the manifest")
        for name in sorted(set(there) - set(wanted))
    ]
    same = f"{len(wanted)} files, each with the SHA-256 of the manifest"
    return _cut(wrong) if wrong else [Checked(check, "pass", where, same)]


def _regrade_all(evidence: Path, tell: Tell) -> list[Checked]:
    patterns = ("runs/*/eval/*/*", "references/*/*", "scaling/*/*")
    folders = sorted(file.parent for p in patterns for file in evidence.glob(f"{p}/{RESULTS_FILE}"))
    wrong: list[Checked] = []
    known: dict[str, dict[str, Problem] | str] = {}
    graded = skipped = 0
    for number, folder in enumerate(folders, 1):
        name = folder.relative_to(evidence).as_posix()
        if number % 50 == 1:
            tell(f"samples: grading {name} ({number} of {len(folders)})")
        try:
            results = read_results(folder)
            assert results is not None
            samples = pd.read_parquet(folder / SAMPLES_FILE)
        except (ConfigError, OSError, ValueError) as error:
            wrong.append(Checked("samples", "fail", name, f"cannot be read: {error}"))
            continue
        problems = _problems(evidence, results, known)
        if isinstance(problems, str):
            skipped += len(samples)
            continue
        wrong += _regrade(name, results, samples, problems)
        graded += len(samples)
    reasons = sorted({why for why in known.values() if isinstance(why, str)})
    found = _cut(wrong)
    if graded and not wrong:
        said = f"{graded:,} samples of {len(folders)} evaluations graded and scored the same again"
        found.append(Checked("samples", "pass", "evaluations", said))
    if skipped:
        said = f"{skipped:,} samples not graded again: {'; '.join(reasons)}"
        found.append(Checked("samples", "skip", "evaluations", said))
    return found


def _problems(
    evidence: Path, results: Results, known: dict[str, dict[str, Problem] | str]
) -> dict[str, Problem] | str:
    """Test problems by id, or why they are not to be had: others would grade otherwise."""
    key = f"{results.benchmark} {results.dataset.digest} {results.dataset.limit}"
    if key not in known:
        own, where = evidence / "micro", placed(results.dataset.path)
        # The embedded suite's are in the evidence; given ones may lie where they lay.
        named = where if where.is_file() else None
        data = own if (own / results.benchmark).is_dir() else named
        try:
            loaded = load_problems(
                find(results.benchmark), data, limit=results.dataset.limit or None
            )
        except ConfigError as error:
            known[key] = str(error)
        else:
            same = loaded.digest == results.dataset.digest
            known[key] = (
                {problem.id: problem for problem in loaded.problems}
                if same
                else f"the test problems of {results.benchmark} here are not those of the study"
            )
    return known[key]


def _regrade(
    name: str, results: Results, samples: pd.DataFrame, problems: Mapping[str, Problem]
) -> list[Checked]:
    """One evaluation: every verdict, then the scores."""
    strange = sorted(set(samples["question_id"]) - set(problems))
    if strange:
        return [Checked("samples", "fail", f"{name}: {strange[0]}", "is no question of the test")]
    benchmark = find(results.benchmark)
    rows = samples.to_dict("records")
    pairs = [(_graded_text(row), problems[row["question_id"]].row) for row in rows]
    fresh = grade_many(benchmark.name, pairs, results.grader.rule)
    broken = [row["status"] == BROKEN.status for row in rows]  # a tool's fault is not graded
    verdicts = [BROKEN if b else verdict for b, verdict in zip(broken, fresh, strict=True)]
    wrong = [
        Checked(
            "samples",
            "fail",
            f"{name}: question {row['question_id']}, sample {row['sample']}",
            f"is stored as {_said(row['correct'], row['extracted'])}, and graded "
            f"{_said(verdict.correct, verdict.extracted)}",
        )
        for row, verdict in zip(rows, verdicts, strict=True)
        if (bool(row["correct"]), _text(row["extracted"])) != (verdict.correct, verdict.extracted)
    ]
    by_question: dict[str, list[Any]] = {}
    for row, verdict in zip(rows, verdicts, strict=True):
        by_question.setdefault(row["question_id"], []).append(verdict)
    graded = [Graded(problems[question], found) for question, found in by_question.items()]
    voted = [votes(benchmark, each.verdicts) for each in graded]
    return wrong + _rescored(name, results.scores, score(benchmark, graded, voted))


def _rescored(name: str, stored: list[Score], again: list[Score]) -> list[Checked]:
    found = {each.name: each for each in again}
    return [
        Checked(
            "samples",
            "fail",
            f"{name}: {each.name}",
            f"is stored as {each.value:.6f} and comes to "
            + (f"{found[each.name].value:.6f}" if each.name in found else "nothing"),
        )
        for each in stored
        if each.name not in found
        or any(
            abs(getattr(each, part) - getattr(found[each.name], part)) > 1e-9
            for part in ("value", "low", "high")
        )
    ]


def _graded_text(row: Mapping[Any, Any]) -> str:
    answer = row.get("answer")
    return str(row["response"] if answer is None or pd.isna(answer) else answer)


def _text(value: Any) -> str | None:
    return None if value is None or pd.isna(value) else str(value)


def _said(correct: object, extracted: object) -> str:
    return f"{'right' if correct else 'wrong'} ({extracted})"


def _render_again(report: Path, evidence: Path, manifest: Mapping[str, Any]) -> list[Checked]:
    try:
        again = {
            name: digest(content) for name, content in render(load_study(evidence)).files.items()
        }
    except ConfigError as error:
        return [Checked("report", "fail", "study.json", str(error))]
    wrong = _compare("report", manifest["files"], again, "what the evidence renders to")
    other = {
        name: f"{there} then, {software().get(name)} now"
        for name, there in manifest["software"].items()
        if software().get(name) != there
    }
    if wrong[0].verdict == "pass":
        said = f"{len(again)} files render from the evidence to the same bytes"
        return [Checked("report", "pass", "every number and figure", said)]
    if other:
        told = ", ".join(f"{name} {change}" for name, change in other.items())
        note = f"other software than it was made with ({told}): install that, or compare by eye"
        wrong.append(Checked("report", "fail", "software", note))
    return wrong


def _cut(wrong: list[Checked]) -> list[Checked]:
    if len(wrong) <= NAMED:
        return wrong
    more = Checked(wrong[0].check, "fail", "and more", f"{len(wrong) - NAMED} further faults")
    return [*wrong[:NAMED], more]
