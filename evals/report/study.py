"""A study as the report sees it: run directories read once, faults told in words.

Nothing here fails because a run is unfinished or missing: what cannot be read becomes a sentence
in `Study.notes`, which the report shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from evals.results import RESULTS_FILE, SAMPLES_FILE, Results, read_results
from evals.scaling import majority_at_k, pass_at_k
from evals.scaling.stage import study_config
from evals.scores import RIGHT, Metric, Score
from reopold.config import ConfigError, RunConfig
from reopold.run_dir import Record, RunDir
from reopold.study_config import REFERENCE_FOLDER, REFERENCES, StudyConfig, run_name, teacher_role

#: Of cost: what a run has used up when it stands at a checkpoint (:mod:`reopold.costs`).
UNITS = (
    *("samples", "rollouts", "steps", "tokens", "teacher_tokens", "prefill_tokens", "flops"),
    *("device_seconds", "seconds"),
)
_PREFILL = ("cost/prompt_tokens", "cost/teacher_tokens", "cost/student_tokens")


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint on one benchmark.

    Args:
        average: share of right samples of each question (index: question id, sorted). None
            without a readable samples.parquet.
        clusters: cluster of each question, by the same index; questions of one cluster are no
            independent evidence.
    """

    folder: Path
    step: int
    results: Results
    average: pd.Series[float] | None
    clusters: pd.Series[str] | None

    @property
    def benchmark(self) -> str:
        return self.results.benchmark

    def score(self, metric: Metric) -> Score | None:
        """The score of `metric` with the largest k, or None."""
        found = [score for score in self.results.scores if score.metric == metric]
        return max(found, key=lambda score: score.k, default=None)

    def question_values(self, metric: Metric) -> pd.Series[float]:
        """`metric` of each question, in [0, 1], for the k of `score(metric)`; index as `average`.

        Raises:
            OSError, ValueError: the samples cannot be read, or the metric was not measured.
        """
        score = self.score(metric)
        if score is None:
            raise ValueError(f"{metric} was not measured")
        samples = _read_samples(self.folder, ["question_id", "vote", "correct"])
        values = {}
        for question, rows in samples.groupby("question_id"):
            if metric == "maj@k":
                votes = [None if pd.isna(vote) else str(vote) for vote in rows["vote"]]
                values[question] = majority_at_k(votes, RIGHT, score.k)
            elif metric == "pass@k":
                values[question] = pass_at_k(len(rows), int(rows["correct"].sum()), score.k)
            else:
                values[question] = float(rows["correct"].mean())
        return pd.Series(values, dtype="float64").sort_index()


@dataclass(frozen=True)
class Run:
    """One run directory. `arm` names what it is a seed of; a reference is an arm of its own."""

    directory: RunDir
    arm: str
    config: RunConfig
    manifest: Record
    metrics: pd.DataFrame
    events: list[Record] | None
    """None: there are none that can be read."""
    evaluations: list[Evaluation]
    given: bool = False
    """A model as it was given: there are its evaluations, and no training to tell of."""

    @property
    def name(self) -> str:
        return self.directory.path.name

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def steps(self) -> int:
        """Of its whole training."""
        return 0 if self.given else self.config.train.steps

    @property
    def switch_samples(self) -> float:
        """Samples drawn before reopold's refinement."""
        return float(self.config.switch_step * self.config.samples_per_step)

    def on(self, benchmark: str) -> list[Evaluation]:
        """Evaluations on `benchmark`, by ascending step."""
        return [item for item in self.evaluations if item.benchmark == benchmark]

    def scored(self, benchmark: str) -> list[Evaluation]:
        """Those of `on(benchmark)` whose samples are there: what can be resampled."""
        return [item for item in self.on(benchmark) if item.average is not None]

    def cost(self, step: int) -> dict[str, float]:
        """What `step` completed steps cost, by unit (:data:`UNITS`); NaN: not logged."""
        if step == 0:
            return dict.fromkeys(UNITS, 0.0)
        done = self.metrics.loc[self.metrics.index < step]
        if len(done) != step:
            known = {"steps": float(step), "samples": float(step * self.config.samples_per_step)}
            return dict.fromkeys(UNITS, math.nan) | known

        def last(*names: str) -> float:
            there = [name for name in names if name in done.columns]
            if len(there) < len(names):
                return math.nan
            return float(sum(done[name].iloc[-1] for name in names))

        seconds = math.nan
        if "perf/seconds_total" in done.columns:
            seconds = float(done["perf/seconds_total"].sum(skipna=False))
        devices = int((self.manifest.get("hardware") or {}).get("devices", 1))
        samples = last("samples")
        return {
            "steps": float(step),
            "samples": step * self.config.samples_per_step if math.isnan(samples) else samples,
            "rollouts": last("cost/rollouts"),
            "tokens": last("tokens"),
            "teacher_tokens": last("cost/teacher_tokens"),
            "prefill_tokens": last(*_PREFILL),
            "flops": last("cost/flops"),
            "device_seconds": seconds * devices,
            "seconds": seconds,
        }


@dataclass(frozen=True)
class Study:
    """StudyConfig, its references and its ARM x seed runs in the order of study.json."""

    config: StudyConfig
    references: dict[str, Run]
    runs: list[Run]
    notes: list[str]
    folder: Path
    pictures: set[Path] = field(default_factory=set)
    """Files that the report has shown."""

    @property
    def everyone(self) -> list[Run]:
        return [*self.references.values(), *self.runs]

    def of(self, arm: str) -> list[Run]:
        """Runs of `arm` (or the one reference of that name), in the order of the seeds."""
        return [run for run in self.everyone if run.arm == arm]

    @cached_property
    def compared(self) -> list[str]:
        """Methods and variants, in study order; points of sweeps have tables of their own."""
        return [arm.name for arm in self.config.compared]

    @property
    def switching(self) -> list[Run]:
        """Compared runs that have two phases."""
        return [run for name in self.compared for run in self.of(name) if run.config.switches]

    @cached_property
    def expected(self) -> list[str]:
        """The benchmarks that every checkpoint is evaluated on, the main one first."""
        everyone = [*self.runs, *self.references.values()]
        return (everyone[0] if everyone else self).config.evaluation.benchmarks

    @cached_property
    def benchmarks(self) -> list[str]:
        """The expected ones, then any other that was evaluated, by name."""
        found = {item.benchmark for run in self.everyone for item in run.evaluations}
        return [*self.expected, *sorted(found - set(self.expected))]


def load_study(study_dir: Path) -> Study:
    """Read `study_dir`/study.json and every run under `study_dir`/runs.

    Raises:
        ConfigError: there is no study.json, it is not JSON, or it is not a StudyConfig.
    """
    config = study_config(study_dir)
    notes: list[str] = []
    found: list[Run] = []
    names = [*REFERENCES, *(teacher_role(each.name) for each in config.micro.teachers)]
    folders = sorted((study_dir / "runs").glob("*")) if (study_dir / "runs").is_dir() else []
    for folder in folders:
        if folder.is_dir() and not folder.name.startswith("."):
            run = _load_run(RunDir(folder), names, notes)
            if run is not None:
                found.append(run)
    references = {run.arm: run for name in names for run in found if run.arm == name}
    if not config.embedded:
        names = list(config.given_models)
        references = {name: _given_model(config, study_dir, name, notes) for name in names}
    runs = _in_study_order(config, [run for run in found if run.arm == ""], notes)
    study = Study(config, references, runs, notes, study_dir)
    notes.extend(_what_is_missing(study))
    return study


def _load_run(directory: RunDir, references: Sequence[str], notes: list[str]) -> Run | None:
    name = directory.path.name
    try:
        config = directory.config()
        manifest = directory.manifest()
    except (ConfigError, json.JSONDecodeError):
        notes.append(f"Run {name} is left out: its config.json or manifest.json cannot be read.")
        return None
    lines = [line for line in directory.metrics() if "step" in line]
    steps = int(manifest.get("step", 0))
    if (absent := steps - len({line["step"] for line in lines})) > 0:
        notes.append(
            f"The metrics.jsonl of run {name} is damaged: it lacks {absent} of {steps} steps."
        )
    metrics = pd.DataFrame(lines, columns=None if lines else ["step"])
    metrics = metrics.drop_duplicates("step", keep="last").set_index("step").sort_index()
    if manifest.get("config_digest") not in (None, directory.digest()):
        notes.append(f"The config.json of run {name} is not the one that its trainer started with.")
    arm = name if name in references else ""  # the study says which
    files = sorted(directory.path.glob(f"eval/step-*/*/{RESULTS_FILE}"))
    stepped = [(file, int(file.parent.parent.name.removeprefix("step-"))) for file in files]
    evaluations = _load_evaluations(directory, stepped, notes)
    # A run that has begun has an event at least: without any it is not known what happened.
    events = directory.events() or None
    return Run(directory, arm, config, manifest, metrics, events, evaluations)


def _given_model(config: StudyConfig, study_dir: Path, name: str, notes: list[str]) -> Run:
    """Student or teacher of a study whose models are given: evaluations and no training."""
    folder = RunDir(study_dir / REFERENCE_FOLDER / name)
    recipe = config.recipe(config.compared[0])
    files = sorted(folder.path.glob(f"*/{RESULTS_FILE}"))
    evaluations = _load_evaluations(folder, [(file, 0) for file in files], notes)
    manifest = {"status": "given"}
    return Run(folder, name, recipe, manifest, pd.DataFrame(), None, evaluations, given=True)


def _load_evaluations(
    directory: RunDir, files: list[tuple[Path, int]], notes: list[str]
) -> list[Evaluation]:
    """Args: files: every results.json with its checkpoint's step."""
    loaded = []
    for file, step in files:
        where = f"run {directory.path.name}, step {step}, {file.parent.name}"
        try:
            results = read_results(file.parent)
        except ConfigError:
            notes.append(f"The results.json of {where} cannot be read: it is left out.")
            continue
        if results is None:
            continue
        try:
            samples = _read_samples(file.parent, ["question_id", "cluster", "correct"])
        except (OSError, ValueError):  # pyarrow's ArrowInvalid is a ValueError
            notes.append(f"The samples.parquet of {where} cannot be read: nothing to resample.")
            loaded.append(Evaluation(file.parent, step, results, None, None))
            continue
        average = samples.groupby("question_id")["correct"].mean().astype("float64").sort_index()
        clusters = samples.groupby("question_id")["cluster"].first().sort_index()
        evaluation = Evaluation(file.parent, step, results, average, clusters)
        score = evaluation.score("avg@k")
        if score is not None and abs(float(average.mean()) - score.value) > 1e-4:
            notes.append(f"results.json and samples.parquet of {where} disagree on the score.")
        loaded.append(evaluation)
    return loaded


def _read_samples(folder: Path, columns: list[str]) -> pd.DataFrame:
    samples = pd.read_parquet(folder / SAMPLES_FILE, columns=columns)
    samples["correct"] = samples["correct"].astype("float64")
    return samples


def _in_study_order(config: StudyConfig, runs: list[Run], notes: list[str]) -> list[Run]:
    """One run for each ARM x seed of the study; others are left out, with a note."""
    named = {run.name: run for run in runs}
    ordered = []
    for arm in config.arms:
        for seed in arm.seeds:
            run = named.pop(run_name(arm, seed), None)
            if run is None:
                continue
            if (run.config.method, run.seed) == (arm.method, seed):
                ordered.append(replace(run, arm=arm.name))
            else:
                notes.append(f"Run {run.name} is not what its name says: it is left out.")
    notes += [f"Run {name} is no part of study.json: it is left out." for name in named]
    return ordered


def _what_is_missing(study: Study) -> list[str]:
    notes = []
    wanted = REFERENCES if study.config.embedded else list(study.config.given_models)
    notes += [f"There is no {name} run." for name in wanted if name not in study.references]
    there = {run.name for run in study.runs}
    for arm in study.config.arms:
        absent = [str(seed) for seed in arm.seeds if run_name(arm, seed) not in there]
        if absent:
            notes.append(f"{arm.name} has no run for seed {', '.join(absent)}.")
    for run in study.everyone:
        done, steps = run.manifest.get("step", 0), run.steps
        status = run.manifest.get("status", "new")
        if status not in ("finished", "given"):
            notes.append(f"Run {run.name} is not finished: {status}, {done} of {steps} steps.")
        notes += [note for name in study.expected for note in _not_evaluated(study, run, name)]
    if not study.of(study.config.baseline):
        notes.append(f"The baseline {study.config.baseline} has no run: nothing to compare with.")
    return notes


def _not_evaluated(study: Study, run: Run, benchmark: str) -> list[str]:
    evaluated, steps = run.scored(benchmark), run.steps
    if not evaluated:
        return [f"Run {run.name} has no evaluation on {benchmark} yet."]
    if (last := evaluated[-1].step) == steps:
        return []
    where = f" on {benchmark}" if len(study.expected) > 1 else ""
    return [f"The last evaluation of {run.name}{where} is at step {last} of {steps}."]
