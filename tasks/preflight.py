"""What is checked before any work starts: a clear error now instead of a dead run later."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from evals.evaluation import check_settings, prepare
from reopold.changes import accepted, settings
from reopold.config import ConfigError, EvaluationConfig, RunConfig, check_local
from reopold.data.prompts import check_sets, load_mix
from reopold.data.tokenizers import check_same_tokenizer, load_tokenizer
from reopold.estimate import checkpoints
from reopold.preflight import Check
from reopold.provenance import check_parents, checkpoint_digest, parameter_count
from reopold.recipes import parse
from reopold.run_dir import RunDir, claim_folder, write_atomic
from reopold.studies import plan_runs, plan_supervised, runs_folder, supervised_roles
from reopold.study_config import MicroConfig, StudyConfig
from tasks.home import http_status

#: Logs, reports, trackers and Prefect's database beside the checkpoints.
OVERHEAD_BYTES = 200 * 2**20


def check_run(config: RunConfig, run_dir: Path) -> None:
    """Find everything a run needs, as far as files and tokenizers tell.

    Raises:
        ConfigError: prompts, images, test problems or checkpoints are missing or faulty, an
            environment is unknown, tokenizers differ, a model would be given images that it does
            not take, or the disk is too full.
    """
    config = config.with_paths(os.path.expanduser)  # keeps the leading ./
    check_sets(config.data)
    if config.evaluation.data:
        check_local("evaluation.data", config.evaluation.data)
    mix = load_mix(config.data, config.family, config.seed, completions=config.method == "sft")
    for evaluation in config.evaluations:
        prepare(evaluation)
    check_parents(RunDir(run_dir), config)
    if config.model.teacher:
        for path in (config.model.teacher, *(teacher.model for teacher in config.teachers)):
            check_same_tokenizer(config.model.student, path)
    else:
        load_tokenizer(config.model.student)
    if any(prompt.images for prompt in mix.prompts):
        from reopold.teachers.build import check_sight  # torch: seconds to import

        check_sight(config, mix.prompts)
    require_disk(run_dir, checkpoint_bytes(config))


def claim_run(config: RunConfig, run_dir: Path, accept: Sequence[str] = ()) -> None:
    """Write the run's config.json, or accept the one there if it is the same recipe.

    Args:
        accept: fields, or sections, in which the recipe may differ from the one there.

    Raises:
        ConfigError: the folder belongs to another recipe.
    """
    RunDir(run_dir).create(config.with_paths(os.path.expanduser), accept)


def checkpoint_bytes(config: RunConfig) -> int:
    """Size of all checkpoints that the run will keep; 0 where nobody knows its student's size."""
    parameters = parameter_count(config.model.student)
    return 0 if math.isnan(parameters) else checkpoints(config, parameters)


#: Of a study file: what may be added to, or changed, without touching a run that is there.
EXTENDABLE = {
    *("title", "methods", "variants", "sweeps", "seeds", "baseline"),
    *("scaling", "microscope", "champion", "published", "sft_data"),
}


def check_study(study: StudyConfig, study_dir: Path, accept: Sequence[str] = ()) -> None:
    """Find out whether a study can be run, or go on, in a folder. Nothing is written.

    Args:
        accept: fields, or sections, in which the study may differ from the one there.

    Raises:
        ConfigError: a run of it would be refused, the folder belongs to another study (one that
            differs in more than in what was added), or the disk is too full.
    """
    runs = _planned(study, study_dir)
    for evaluation in runs[0].evaluations:
        check_settings(evaluation)
    if study.embedded:
        student = micro_parameters(study.micro)
        require_disk(study_dir, sum(checkpoints(run, student) for run in runs))
    else:
        for config in runs:
            check_run(config, runs_folder(study_dir) / config.name)
    _extended(study, study_dir, accept)
    if not accept:
        _check_runs(runs, study_dir)


def claim_study(study: StudyConfig, study_dir: Path, accept: Sequence[str] = ()) -> None:
    """Write study.json, or accept the one there; runs that it changes go on with what follows.

    Raises:
        ConfigError: as :func:`check_study`.
    """
    file = study_dir / "study.json"
    if _extended(study, study_dir, accept):
        for config in _planned(study, study_dir) if accept else []:
            run = RunDir(runs_folder(study_dir) / config.name)
            if run.config_file.exists():
                run.create(config, list(RunConfig.model_fields))
        write_atomic(file, study.canonical_json())
    claim_folder(study_dir, file.name, study.canonical_json())


def _planned(study: StudyConfig, study_dir: Path) -> list[RunConfig]:
    try:
        supervised = [plan_supervised(study, study_dir, role) for role in supervised_roles(study)]
        return [*plan_runs(study, study_dir), *supervised]
    except ValidationError as error:
        reasons = "; ".join(str(fault["msg"]) for fault in error.errors())
        raise ConfigError(f"study {study.name}: {reasons}") from error


def _extended(study: StudyConfig, study_dir: Path, accept: Sequence[str]) -> bool:
    """Whether another study.json is there that this study may take the place of."""
    file = study_dir / "study.json"
    if not file.exists() or file.read_text(encoding="utf-8") == study.canonical_json():
        return False
    try:
        there = parse(json.loads(file.read_text(encoding="utf-8")), StudyConfig, str(file))
    except (ConfigError, ValueError) as error:
        raise ConfigError(
            f"{study_dir} belongs to another config ({error}); choose another name, or delete it "
            "to start over"
        ) from error
    old, new = (
        settings(each.model_dump(mode="json", exclude=EXTENDABLE)) for each in (there, study)
    )
    if old != new:
        accepted(old, new, accept, f"{study_dir} belongs to another config")
    return True


def _check_runs(runs: Sequence[RunConfig], study_dir: Path) -> None:
    """Raises ConfigError: a run is there under a name that now means other settings."""
    for config in runs:
        run = RunDir(runs_folder(study_dir) / config.name)
        if run.config_file.exists():
            run.create(config)


def check_evaluations(checkpoint: Path, settings: Sequence[EvaluationConfig], output: Path) -> None:
    """Claim a folder of results for every benchmark.

    Raises:
        ConfigError: no checkpoint, no tokenizer, unreadable test problems, or a folder of results
            of another checkpoint or other settings.
    """
    for each in settings:
        prepare(each)
    if not (checkpoint / "config.json").is_file():
        raise ConfigError(f"no checkpoint at {checkpoint}: it holds no config.json")
    load_tokenizer(str(checkpoint))
    digest = checkpoint_digest(checkpoint)
    for each in settings:
        claim = {"checkpoint_digest": digest, **each.model_dump(mode="json")}
        text = json.dumps(claim, indent=2, sort_keys=True)
        claim_folder(output / each.benchmark, "claim.json", text)


class PreflightFailed(Exception):
    """A check of `reopold preflight` failed; the table above says which and how to mend it."""


def preflight(config: RunConfig, run_dir: Path) -> list[Check]:
    """Every check of a recipe: its numbers, data and models, disk, and the trackers.

    What needs torch runs in a process of its own (:mod:`reopold.preflight`).
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(config.with_paths(os.path.expanduser).canonical_json(), encoding="utf-8")
        command = [sys.executable, "-m", "reopold.preflight", str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        found = [Check("models", "fail", _last_line(done.stderr), "please report this")]
    else:
        found = [Check(**row) for row in json.loads(done.stdout.splitlines()[-1])]
    return [*found, _disk(config, run_dir), *_trackers()]


def _disk(config: RunConfig, run_dir: Path) -> Check:
    needed = checkpoint_bytes(config)
    found = f"{len(config.checkpoint_steps())} checkpoints need about {needed / 2**30:.2g} GiB"
    try:
        require_disk(run_dir, needed)
    except ConfigError as error:
        return Check(
            "disk", "fail", str(error), "raise train.checkpoint_every, or set REOPOLD_HOME"
        )
    return Check("disk", "pass", found)


def _trackers() -> Iterator[Check]:
    """Prefect's server must answer if one is named, MLflow's had better; local files need none."""
    mlflow = os.environ.get("MLFLOW_TRACKING_URI", "")
    mend = "unset MLFLOW_TRACKING_URI; meanwhile what it lacks waits in the run directory"
    yield _reachable("MLflow", mlflow, f"{mlflow}/health", mend, "warn")
    prefect = os.environ.get("PREFECT_API_URL", "")
    yield _reachable("Prefect", prefect, f"{prefect}/health", "unset PREFECT_API_URL", "fail")


def _reachable(name: str, url: str, health: str, mend: str, away: Literal["warn", "fail"]) -> Check:
    if not url.startswith("http"):
        return Check(name, "pass", "files under .reopold/, no server")
    status = http_status(health)
    if status == 200:
        return Check(name, "pass", f"{url} answers")
    reason = "does not answer" if status is None else f"answers with status {status}"
    return Check(name, away, f"{url} {reason}", f"start it, correct the address, or {mend}")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it ended without a word"


def require_disk(folder: Path, needed: int) -> None:
    """Raises ConfigError where `needed` bytes and the overhead do not fit on the folder's disk."""
    existing = next(
        parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists()
    )
    free = shutil.disk_usage(existing).free
    if free < needed + OVERHEAD_BYTES:
        raise ConfigError(
            f"no disk space for {folder}: about {(needed + OVERHEAD_BYTES) / 2**30:.1f} GiB are "
            f"needed and {free / 2**30:.1f} GiB are free; raise train.checkpoint_every, or move "
            "the state folder with REOPOLD_HOME"
        )


def micro_parameters(micro: MicroConfig) -> int:
    """Of the micro student: about 14 width^2 a layer."""
    return 14 * micro.student_width**2 * micro.student_layers
