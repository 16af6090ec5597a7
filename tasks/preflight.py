"""What is checked before any work starts: a clear error now instead of a dead run later."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from pydantic import ValidationError

from evals.run import check_settings, prepare
from reopold.config import (
    ConfigError,
    EvaluationConfig,
    MicroConfig,
    RunConfig,
    StudyConfig,
    is_local,
)
from reopold.data.prompts import load_prompts
from reopold.data.tokenizers import check_same_tokenizer, load_tokenizer
from reopold.provenance import check_parents, checkpoint_digest
from reopold.run_dir import RunDir, claim_folder
from reopold.studies import plan_run, plan_supervised

#: Logs, reports, trackers and Prefect's database beside the checkpoints.
OVERHEAD_BYTES = 200 * 2**20
#: A checkpoint holds the weights and AdamW's two moments.
COPIES_PER_CHECKPOINT = 3


def check_run(config: RunConfig, run_dir: Path) -> None:
    """Claim the run directory after everything a run needs was found.

    Raises:
        ConfigError: prompts, test problems or checkpoints are missing or faulty, tokenizers
            differ, the folder belongs to another config, or the disk is too full.
    """
    config = config.with_paths(os.path.expanduser)  # keeps the leading ./
    for name, path in (
        ("data.train", config.data.train),
        ("evaluation.data", config.evaluation.data),
    ):
        if not is_local(path):
            raise ConfigError(
                f"{name} must be a local file, a path starting with . / or ~ (got {path!r})"
            )
    load_prompts(config.data.train, completions=config.method == "sft")
    prepare(config.evaluation)
    check_parents(RunDir(run_dir), config)
    if config.model.teacher:
        check_same_tokenizer(config.model.student, config.model.teacher)
    else:
        load_tokenizer(config.model.student)
    weights = sum(file.stat().st_size for file in Path(config.model.student).glob("*.safetensors"))
    require_disk(run_dir, len(config.checkpoint_steps()) * COPIES_PER_CHECKPOINT * weights)
    RunDir(run_dir).create(config)


def check_study(study: StudyConfig, study_dir: Path) -> None:
    """Claim the study's folder.

    Raises:
        ConfigError: a run of it would be refused, the folder belongs to another config, or the
            disk is too full.
    """
    check_settings(study.evaluation)
    try:
        runs = [plan_run(study, study_dir, m, s) for m in study.methods for s in study.seeds]
        runs += [plan_supervised(study, study_dir, role) for role in ("teacher", "student")]
    except ValidationError as error:
        reasons = "; ".join(str(fault["msg"]) for fault in error.errors())
        raise ConfigError(f"study {study.name}: {reasons}") from error
    checkpoints = sum(len(run.checkpoint_steps()) for run in runs)
    require_disk(study_dir, checkpoints * COPIES_PER_CHECKPOINT * micro_bytes(study.micro))
    claim_folder(study_dir, "study.json", study.canonical_json())


def check_evaluation(checkpoint: Path, settings: EvaluationConfig, output: Path) -> None:
    """Claim the folder of the results.

    Raises:
        ConfigError: no checkpoint, no tokenizer, unreadable test problems, or a folder of results
            of another checkpoint or other settings.
    """
    prepare(settings)
    if not (checkpoint / "config.json").is_file():
        raise ConfigError(f"no checkpoint at {checkpoint}: it holds no config.json")
    load_tokenizer(str(checkpoint))
    claim = {"checkpoint_digest": checkpoint_digest(checkpoint), **settings.model_dump(mode="json")}
    claim_folder(output, "claim.json", json.dumps(claim, indent=2, sort_keys=True))


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


def micro_bytes(micro: MicroConfig) -> int:
    """Size of the micro student's float32 weights: about 14 width^2 parameters a layer."""
    return 14 * micro.student_width**2 * micro.student_layers * 4
